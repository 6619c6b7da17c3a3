//! The matrix as a list: who may reach whom.

use super::grouped::{Grouped, Pin, Receiver};
use crate::cli::terminal::{Layout, Paint, wrapped};

/// A paragraph for each group, or for some that have the same answer.
pub(super) fn list(grouped: &Grouped<'_>, layout: Layout) -> String {
    let mut text = String::new();
    let receivers = grouped.receivers(true);
    let (reached, unreached): (Vec<&Receiver>, Vec<&Receiver>) =
        receivers.iter().partition(|receiver| !receiver.pins.is_empty());
    let all: Vec<usize> = (0..grouped.transports().len()).collect();
    let ports = if grouped.ports(&all) == "every port" {
        grouped.transports().iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    } else {
        grouped.ports(&all)
    };
    let title = if grouped.is_of_denied() { "Who may not reach whom" } else { "Who may reach whom" };
    paragraph(&mut text, layout, Some(Paint::Bold), &format!("{title}, on {ports}:"), 2);
    for receiver in reached {
        text.push('\n');
        let ends = grouped.ends(receiver.groups.iter().copied());
        paragraph(&mut text, layout, Some(Paint::Bold), &grouped.names.describe(&ends, &[]).join(", "), 2);
        for pin in &receiver.pins {
            let words = format!("  {} {}", grouped.ports(&pin.transports), senders(grouped, receiver, pin));
            paragraph(&mut text, layout, None, &words, 6);
        }
    }
    let unreached = grouped.ends(unreached.into_iter().flat_map(|receiver| receiver.groups.iter().copied()));
    if !unreached.is_empty() {
        let nobody = if grouped.is_of_denied() { "Denied to nobody" } else { "Nobody reaches" };
        let names = grouped.names.describe(&unreached, &[]).join(", ");
        text.push('\n');
        paragraph(&mut text, layout, None, &format!("{nobody}: {names}"), 2);
    }
    if grouped.has_own_nodes() {
        text.push('\n');
        let note = "A pod and its own node always reach each other, whatever the list says.";
        paragraph(&mut text, layout, Some(Paint::Dim), note, 2);
    }
    text
}

/// `from shop/web, monitoring/prometheus (only over IPv4)`.
fn senders(grouped: &Grouped<'_>, receiver: &Receiver, pin: &Pin) -> String {
    let over = pin.family.map_or_else(String::new, |family| format!(" (only over {family})"));
    let is_everyone = receiver.groups.iter().all(|to| grouped.is_everyone(&pin.from, *to));
    if is_everyone && !grouped.is_filtered() {
        return format!("from everyone{over}");
    }
    let to = grouped.ends(receiver.groups.iter().copied());
    let from = grouped.ends(pin.from.iter().copied());
    format!("from {}{over}", grouped.names.describe(&from, &to).join(", "))
}

fn paragraph(text: &mut String, layout: Layout, paint: Option<Paint>, words: &str, indent: usize) {
    for line in wrapped(words, layout.width, indent) {
        let line = paint.map_or_else(|| line.clone(), |paint| layout.paint(paint, &line));
        text.push_str(&line);
        text.push('\n');
    }
}
