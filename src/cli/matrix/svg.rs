//! The matrix as a picture: senders on the left, receivers on the right, and at each receiver its ports.
//!
//! A line leads from a sender to a port. Ports that everyone may reach have no lines, which would hide the others, but
//! say so; so do ports of senders that reach into many namespaces. A line that leads from the title of a namespace is from all of its pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::grouped::{Grouped, Pin, Receiver};
use crate::cli::terminal::wrapped;

/// The height of a line of text.
const LINE: usize = 18;
/// The width of a character: the font is one of fixed width, with this size.
const CHARACTER: f64 = 7.3;
const FONT: usize = 12;
/// Between boxes, and around text in them.
const GAP: usize = 14;
const PADDING: usize = 8;
/// Between the two columns, for the lines.
const LEAST_MIDDLE: usize = 220;
const MOST_MIDDLE: usize = 520;
/// The narrowest picture, for the note below it.
const LEAST_WIDTH: usize = 380;
/// The longest text in a box, in characters.
const MOST_TEXT: usize = 72;

/// A sender with lines into more namespaces than this is named at the ports, as are the senders of a port with more.
const MOST_NAMESPACES: usize = 4;

/// Colours of lines by the namespace of the sender: distinguishable, also for people who do not see all colours.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7a5195", "#b8860b", "#56789a", "#8c564b"];

/// A text in a box, and which part of it is how.
struct Text {
    x: usize,
    y: usize,
    words: String,
    /// The whole text, if not all of it is shown.
    whole: Option<String>,
    class: &'static str,
}

/// One column of boxes.
#[derive(Default)]
struct Column {
    /// The top and the height of each.
    boxes: Vec<(usize, usize)>,
    texts: Vec<Text>,
    y: usize,
    widest: usize,
}

impl Column {
    fn open(&mut self) {
        self.boxes.push((self.y, 0));
        self.y += PADDING;
    }

    /// Adds a line, and returns its middle.
    fn line(&mut self, indent: usize, text: &str, class: &'static str) -> usize {
        let whole = text;
        let text = shortened(whole);
        let indent = indent * LINE / 3;
        self.widest = self.widest.max(indent + width(&text));
        let y = self.y;
        self.y += LINE;
        let whole = (text != whole).then(|| whole.to_owned());
        self.texts.push(Text { x: indent, y: y + LINE - 5, words: text, whole, class });
        y + LINE / 2
    }

    fn close(&mut self) {
        self.y += PADDING;
        if let Some((top, height)) = self.boxes.last_mut() {
            *height = self.y - *top;
        }
        self.y += GAP;
    }

    fn write(&self, out: &mut String, x: usize, widest: usize) {
        for (top, height) in &self.boxes {
            let _ = writeln!(
                out,
                r#"<rect class="box" x="{x}" y="{top}" width="{widest}" height="{height}" rx="6"/>"#
            );
        }
        for text in &self.texts {
            let (at, y) = (x + PADDING + text.x, text.y);
            let title = text.whole.as_ref().map(|whole| format!("<title>{}</title>", escaped(whole)));
            let (class, words, title) = (text.class, escaped(&text.words), title.unwrap_or_default());
            let _ = writeln!(out, r#"<text class="{class}" x="{at}" y="{y}">{words}{title}</text>"#);
        }
    }
}

/// Where a line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// All groups of a namespace, by its index.
    Namespace(usize),
    Group(usize),
}

/// The picture.
pub(super) fn svg(grouped: &Grouped<'_>) -> String {
    let namespaces = grouped.by_namespace();
    // Without a port to ask about, nobody knows who reaches whom.
    let receivers = if grouped.transports().is_empty() { Vec::new() } else { grouped.receivers(false) };
    let drawn: Vec<Flows> = receivers
        .iter()
        .enumerate()
        .flat_map(|(at, receiver)| {
            receiver.pins.iter().enumerate().map(move |(pin, _)| (at, pin)).collect::<Vec<_>>()
        })
        .filter_map(|(at, pin)| {
            let receiver = receivers.get(at)?;
            let sources = sources(grouped, receiver, receiver.pins.get(pin)?, &namespaces)?;
            Some(Flows { receiver: at, pin, lines: sources, named: Vec::new() })
        })
        .collect();
    let drawn = without_hubs(grouped, &receivers, drawn);
    let used: BTreeSet<Source> = drawn.iter().flat_map(|flows| flows.lines.iter().copied()).collect();
    let (right, ends, tops) = receiver_column(grouped, &receivers, &drawn, &namespaces);
    let (left, starts) = senders(grouped, &namespaces, &used, &tops);
    let of_source = |source: &Source| match source {
        Source::Namespace(namespace) => *namespace,
        Source::Group(group) => {
            namespaces.iter().position(|(_, groups)| groups.contains(group)).unwrap_or_default()
        }
    };
    let (left_width, right_width) = (left.widest + 2 * PADDING, right.widest + 2 * PADDING);
    let middle = (LEAST_MIDDLE + used.len() * 6).min(MOST_MIDDLE);
    let middle = if used.is_empty() { 0 } else { middle };
    let left_width = if used.is_empty() { 0 } else { left_width };
    let right_x = GAP + left_width + middle;
    let width = (right_x + right_width + GAP).max(LEAST_WIDTH);
    let height = left.y.max(right.y).max(LINE);
    let note = wrapped(note(grouped), characters(width - 2 * GAP), 0);
    let mut out = head(width, height + (note.len() + 1) * LINE);
    let (x1, x2) = (GAP + left_width, right_x);
    for Flows { receiver, pin, lines, .. } in drawn.iter().filter(|flows| !flows.lines.is_empty()) {
        let Some(end) = ends.get(&(*receiver, *pin)) else { continue };
        for source in lines {
            let Some(start) = starts.get(source) else { continue };
            let colour = COLOURS.get(of_source(source) % COLOURS.len()).copied().unwrap_or("black");
            let bend = middle / 2;
            let title = receivers.get(*receiver).and_then(|known| {
                let pin = known.pins.get(*pin)?;
                Some(format!(
                    "{} to {}: {}",
                    name_of(grouped, &namespaces, *source),
                    titles(grouped, known),
                    ports(grouped, pin)
                ))
            });
            let _ = writeln!(
                out,
                r#"<path class="flow" stroke="{colour}" d="M{x1} {start} C{} {start} {} {end} {x2} {end}"><title>{}</title></path>"#,
                x1 + bend,
                x2 - bend,
                escaped(&title.unwrap_or_default()),
            );
        }
        let _ = writeln!(out, r#"<path class="arrow" d="M{x2} {end} l-7 -3.5 v7 z"/>"#);
    }
    left.write(&mut out, GAP, left_width);
    right.write(&mut out, right_x, right_width);
    for (at, line) in note.iter().enumerate() {
        let y = height + (at + 1) * LINE;
        let _ = writeln!(out, r#"<text class="note" x="{GAP}" y="{y}">{line}</text>"#);
    }
    out.push_str("</svg>\n");
    out
}

/// How the lines are to be read.
fn note(grouped: &Grouped<'_>) -> &'static str {
    if grouped.is_of_denied() {
        "Lines are flows that are denied. A line from the title of a namespace is from all of its pods."
    } else {
        "Lines are flows that pass. A line from the title of a namespace is from all of its pods."
    }
}

fn head(width: usize, height: usize) -> String {
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="DejaVu Sans Mono, Menlo, Consolas, monospace" font-size="{FONT}">
<style>
.sheet {{ fill: #ffffff }} .box {{ fill: #f6f8fa; stroke: #c5ccd3 }}
.name {{ font-weight: bold; fill: #1f2328 }} .group {{ fill: #1f2328 }} .port {{ fill: #444c56 }} .note {{ fill: #6a737d }}
.flow {{ fill: none; stroke-width: 1.4; opacity: .75 }} .flow:hover {{ stroke-width: 4; opacity: 1 }} .arrow {{ fill: #6a737d }}
</style>
<rect class="sheet" width="100%" height="100%"/>
"#
    )
}

/// The boxes of the senders, and where their lines begin.
fn senders(
    grouped: &Grouped<'_>,
    namespaces: &[(Option<&str>, Vec<usize>)],
    used: &BTreeSet<Source>,
    tops: &BTreeMap<Option<&str>, usize>,
) -> (Column, BTreeMap<Source, usize>) {
    let mut column = Column { y: GAP, ..Column::default() };
    let mut starts = BTreeMap::new();
    for (at, (namespace, groups)) in namespaces.iter().enumerate() {
        let groups: Vec<usize> =
            groups.iter().copied().filter(|group| used.contains(&Source::Group(*group))).collect();
        if groups.is_empty() && !used.contains(&Source::Namespace(at)) {
            continue;
        }
        // Beside the box of the same namespace, so that lines within it are short.
        column.y = column.y.max(tops.get(namespace).copied().unwrap_or_default());
        column.open();
        let y = column.line(0, namespace.unwrap_or("outside"), "name");
        starts.insert(Source::Namespace(at), y);
        for group in groups {
            let y = column.line(2, &grouped.own_title(group), "group");
            starts.insert(Source::Group(group), y);
        }
        column.close();
    }
    (column, starts)
}

/// What a column of receivers is drawn with: the column, where lines to each port end, and where each namespace begins.
type Receivers<'g> = (Column, BTreeMap<(usize, usize), usize>, BTreeMap<Option<&'g str>, usize>);

fn receiver_column<'g>(
    grouped: &'g Grouped<'_>,
    receivers: &[Receiver],
    drawn: &[Flows],
    namespaces: &[(Option<&str>, Vec<usize>)],
) -> Receivers<'g> {
    let mut column = Column { y: GAP, ..Column::default() };
    let (mut ends, mut tops) = (BTreeMap::new(), BTreeMap::new());
    let flows: BTreeMap<(usize, usize), &Flows> =
        drawn.iter().map(|flows| ((flows.receiver, flows.pin), flows)).collect();
    let mut last: Option<Option<&str>> = None;
    for (at, receiver) in receivers.iter().enumerate() {
        let namespace = receiver.groups.first().and_then(|group| grouped.namespace(*group));
        if last != Some(namespace) {
            if last.is_some() {
                column.close();
            }
            tops.insert(namespace, column.y);
            column.open();
            column.line(0, namespace.unwrap_or("outside"), "name");
            last = Some(namespace);
        }
        column.line(2, &own_names(grouped, receiver), "group");
        if receiver.pins.is_empty() {
            column.line(
                4,
                if grouped.is_of_denied() { "denied to nobody" } else { "reached by nobody" },
                "note",
            );
        }
        for (pin, known) in receiver.pins.iter().enumerate() {
            let words = ports(grouped, known);
            let Some(flows) = flows.get(&(at, pin)) else {
                column.line(4, &format!("{words} from everyone"), "note");
                continue;
            };
            let y = if flows.named.is_empty() {
                column.line(4, &words, "port")
            } else {
                let named = flows.named.iter().flat_map(|source| groups_of(*source, namespaces));
                let named = grouped.names.describe(&grouped.ends(named), &[]);
                let and = if flows.lines.is_empty() { "" } else { "also " };
                column.line(4, &format!("{words} {and}from {}", named.join(", ")), "port")
            };
            ends.insert((at, pin), y);
        }
    }
    if last.is_some() {
        column.close();
    }
    (column, ends, tops)
}

/// The flows to one port.
struct Flows {
    receiver: usize,
    pin: usize,
    /// Where lines begin.
    lines: Vec<Source>,
    /// Senders that are named instead.
    named: Vec<Source>,
}

/// Senders with lines into many namespaces, and ports with lines out of many, would hide all others: they are named at
/// the port.
fn without_hubs(grouped: &Grouped<'_>, receivers: &[Receiver], mut drawn: Vec<Flows>) -> Vec<Flows> {
    let namespace = |flows: &Flows| {
        let receiver = receivers.get(flows.receiver)?;
        grouped.namespace(*receiver.groups.first()?)
    };
    let mut reached: BTreeMap<Source, BTreeSet<Option<&str>>> = BTreeMap::new();
    for flows in &drawn {
        for source in &flows.lines {
            reached.entry(*source).or_default().insert(namespace(flows));
        }
    }
    let is_hub =
        |source: &Source| reached.get(source).is_some_and(|namespaces| namespaces.len() > MOST_NAMESPACES);
    for flows in &mut drawn {
        let own = namespace(flows);
        let is_near =
            |source: &Source| matches!(source, Source::Group(group) if grouped.namespace(*group) == own);
        let (near, far): (Vec<Source>, Vec<Source>) = flows.lines.iter().partition(|source| is_near(source));
        let (named, lines): (Vec<Source>, Vec<Source>) =
            far.iter().partition(|source| is_hub(source) || far.len() > MOST_NAMESPACES);
        flows.named = named;
        flows.lines = near.into_iter().chain(lines).collect();
    }
    drawn
}

fn groups_of(source: Source, namespaces: &[(Option<&str>, Vec<usize>)]) -> Vec<usize> {
    match source {
        Source::Group(group) => vec![group],
        Source::Namespace(at) => namespaces.get(at).map(|(_, groups)| groups.clone()).unwrap_or_default(),
    }
}

/// The names of receivers within the box of their namespace.
fn own_names(grouped: &Grouped<'_>, receiver: &Receiver) -> String {
    if let [only] = receiver.groups.as_slice() {
        return grouped.own_title(*only);
    }
    let namespace = receiver.groups.first().and_then(|group| grouped.namespace(*group)).unwrap_or_default();
    let names = grouped.names.describe(&grouped.ends(receiver.groups.iter().copied()), &[]);
    let own = names
        .iter()
        .map(|name| name.strip_prefix(namespace).and_then(|name| name.strip_prefix('/')).unwrap_or(name));
    own.collect::<Vec<_>>().join(", ")
}

/// Where the lines to a port begin; `None` if they would begin everywhere.
fn sources(
    grouped: &Grouped<'_>,
    receiver: &Receiver,
    pin: &Pin,
    namespaces: &[(Option<&str>, Vec<usize>)],
) -> Option<Vec<Source>> {
    if receiver.groups.iter().all(|to| grouped.is_everyone(&pin.from, *to)) {
        return None;
    }
    let itself = match receiver.groups.as_slice() {
        [only] if grouped.members(*only).len() == 1 => Some(*only),
        _ => None,
    };
    let mut sources = Vec::new();
    for (at, (namespace, groups)) in namespaces.iter().enumerate() {
        let present: Vec<usize> = groups.iter().copied().filter(|group| pin.from.contains(group)).collect();
        let is_whole = namespace.is_some() && groups.len() > 1 && present.len() == groups.len();
        if is_whole {
            sources.push(Source::Namespace(at));
        } else {
            sources.extend(present.into_iter().filter(|group| Some(*group) != itself).map(Source::Group));
        }
    }
    Some(sources)
}

fn ports(grouped: &Grouped<'_>, pin: &Pin) -> String {
    let over = pin.family.map_or_else(String::new, |family| format!(" ({family})"));
    format!("{}{over}", grouped.ports(&pin.transports))
}

fn titles(grouped: &Grouped<'_>, receiver: &Receiver) -> String {
    receiver.groups.iter().map(|group| grouped.title(*group)).collect::<Vec<_>>().join(", ")
}

fn name_of(grouped: &Grouped<'_>, namespaces: &[(Option<&str>, Vec<usize>)], source: Source) -> String {
    match source {
        Source::Group(group) => grouped.title(group).to_owned(),
        Source::Namespace(at) => {
            let name = namespaces.get(at).and_then(|(namespace, _)| *namespace).unwrap_or("outside");
            format!("every pod in {name}")
        }
    }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= MOST_TEXT {
        return text.to_owned();
    }
    let start: String = text.chars().take(MOST_TEXT - 1).collect();
    format!("{start}\u{2026}")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a text in a box has at most some dozens of characters"
)]
fn width(text: &str) -> usize {
    (text.chars().count() as f64 * CHARACTER).ceil() as usize
}

/// How many characters fit into a width.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a picture is some thousands of pixels wide"
)]
fn characters(width: usize) -> usize {
    (width as f64 / CHARACTER).floor() as usize
}

fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_and_cut_to_the_width_of_a_box() {
        assert_eq!(escaped("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
        assert_eq!(shortened(&"x".repeat(MOST_TEXT)), "x".repeat(MOST_TEXT));
        assert_eq!(shortened(&"x".repeat(MOST_TEXT + 1)), format!("{}\u{2026}", "x".repeat(MOST_TEXT - 1)));
    }
}
