//! `towpath demo`: two simulated nodes, real packets, a story.
//!
//! The nodes, pods and an external host are network namespaces on this machine, connected as flannel connects them. A
//! real `towpath run` works on each node, from a folder of manifests that the demo writes as the story goes on. After
//! each step every pair is probed with real TCP and UDP, in every family, and the result is shown beside what `story`
//! expects. Everything is removed when the process ends, however it ends.

mod chains;
mod error;
mod folder;
mod interrupt;
mod stage;
mod story;
mod table;

use std::{
    io::{self, IsTerminal as _, Write as _},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};

use crate::lab::{DEFAULT_TIMEOUT, Variant};

pub use error::DemoError;

use interrupt::Interrupts;
use stage::Stage;
use story::{SCENES, SHOWN, Scene, StoryStep};
use table::{Paint, ReachTable, Spot, side_by_side};

/// How long a change may take before the demo reports it as not enforced.
const SETTLING: Duration = Duration::from_secs(5);

/// The command line of `towpath demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Which variant of iptables flannel, kube-proxy and towpath use on the simulated nodes.
    #[arg(long, value_enum, default_value_t = DemoBackend::Auto, env = "TOWPATH_IPTABLES_BACKEND")]
    iptables_backend: DemoBackend,
    /// Wait for Enter before each step.
    #[arg(long, env = "TOWPATH_PAUSE")]
    pause: bool,
}

/// The variant of iptables on the simulated nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DemoBackend {
    /// Flannel's rules in nft, and towpath finds that out by itself.
    Auto,
    /// `iptables-nft`.
    Nft,
    /// `iptables-legacy`.
    Legacy,
}

impl DemoBackend {
    /// The variant of the rules that exist before towpath starts.
    const fn variant(self) -> Variant {
        match self {
            Self::Auto | Self::Nft => Variant::Nft,
            Self::Legacy => Variant::Legacy,
        }
    }

    /// The daemons' `--iptables-backend`.
    const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// How the demo ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DemoEnd {
    /// Everything was as expected.
    AsExpected,
    /// Something was not, even after the time to settle.
    Otherwise,
    /// Interrupted by this signal; a shell reports that as 128 plus its number, 130 for Ctrl-C.
    Interrupted(i32),
}

/// Runs the demo and prints it to standard output.
///
/// # Errors
/// Whatever keeps it from running to its end; a signal is not an error but [`DemoEnd::Interrupted`].
pub fn run(args: &DemoArgs) -> Result<DemoEnd, DemoError> {
    let terminal = io::stdout().is_terminal();
    let paint = Paint { colour: terminal && std::env::var_os("NO_COLOR").is_none() };
    let interrupts = Interrupts::listen()?;
    let play = Play { paint, interrupts, enter: args.pause.then(lines_of_stdin), started: Instant::now() };
    match play.play(args.iptables_backend) {
        Err(DemoError::Interrupted(signal)) => Ok(DemoEnd::Interrupted(signal)),
        other => other,
    }
}

/// One run of the demo.
struct Play {
    paint: Paint,
    interrupts: Interrupts,
    enter: Option<Receiver<()>>,
    started: Instant,
}

/// The results of all steps so far.
#[derive(Default)]
struct Tally {
    step: usize,
    marks: usize,
    wrong: usize,
    slowest: Duration,
}

impl Play {
    fn play(&self, backend: DemoBackend) -> Result<DemoEnd, DemoError> {
        let variant = backend.variant();
        let mut stage = Stage::set(variant, self.interrupts.clone())?;
        self.say(&format!(
            "{}\nTwo nodes, flannel's VXLAN between them, its rules in iptables-{}. All packets are real.\n",
            self.paint.bold("towpath demo"),
            variant.name()
        ))?;
        let mut tally = Tally::default();
        for (number, scene) in SCENES.iter().enumerate() {
            self.say(&format!("{}\n", self.paint.bold(&format!("Scene {}: {}", number + 1, scene.title))))?;
            let entered = Instant::now();
            stage.enter(scene)?;
            if number == 0 {
                stage.start_daemons(backend.name())?;
                self.say(&format!(
                    "`towpath run` is ready on both nodes, {} after the demo began.\n\
                     In the tables, rows send and columns receive: t is TCP and u UDP on the port in the column's \
                     head, x TCP on {}.\nA dot is no answer. Each is asked in {}.\n",
                    milliseconds(self.started.elapsed()),
                    stage::OTHER_PORT,
                    stage.families().iter().map(ToString::to_string).collect::<Vec<_>>().join(" and "),
                ))?;
            }
            let mut before: Option<ReachTable> = None;
            for step in scene.steps {
                tally.step += 1;
                self.wait_for_enter()?;
                before = Some(self.step(&mut stage, scene, step, before.as_ref(), entered, &mut tally)?);
            }
        }
        self.show_chains(&stage)?;
        self.conclude(&tally)
    }

    /// Runs one step. Returns the expected table, for the next one to compare with.
    fn step(
        &self,
        stage: &mut Stage,
        scene: &'static Scene,
        step: &'static StoryStep,
        before: Option<&ReachTable>,
        entered: Instant,
        tally: &mut Tally,
    ) -> Result<ReachTable, DemoError> {
        let total: usize = SCENES.iter().map(|scene| scene.steps.len()).sum();
        self.say(&format!("[{}/{total}] {}", tally.step, self.paint.bold(step.title)))?;
        let expected = ReachTable::parse(step.expected)?;
        let since = if before.is_some() { Instant::now() } else { entered };
        for (name, text) in step.adds {
            stage.put(name, text)?;
        }
        for (name, labels) in step.relabels {
            stage.relabel(name, labels)?;
        }
        if let Some(before) = before {
            let changed = sentinels(&before.differences(&expected));
            match stage.time_until(scene, &expected, &changed, since, SETTLING)? {
                Some(took) => {
                    tally.slowest = tally.slowest.max(took);
                    self.say(&format!("  {}; enforced after {}", written(step), milliseconds(took)))?;
                }
                None => self.say(&format!("  {}; {}", written(step), self.paint.red("NOT enforced")))?,
            }
        }
        let mut seen = stage.probe(scene, &expected, DEFAULT_TIMEOUT)?;
        while seen != expected && since.elapsed() < SETTLING {
            stage.check()?;
            seen = stage.probe(scene, &expected, DEFAULT_TIMEOUT)?;
        }
        stage.check()?;
        let wrong = expected.differences(&seen).len();
        let size = expected.spots().count();
        tally.marks += size;
        tally.wrong += wrong;
        self.say(&side_by_side(&expected, &seen, &stage.ports(scene, &expected)?, self.paint))?;
        if wrong > 0 {
            self.say(&self.paint.red(&format!("  {wrong} of {size} are not as expected\n")))?;
        }
        Ok(expected)
    }

    fn show_chains(&self, stage: &Stage) -> Result<(), DemoError> {
        self.wait_for_enter()?;
        let (chains, sets) = stage.chains(SHOWN)?;
        self.say(
            &self
                .paint
                .bold(&format!("What packets from and to {SHOWN} meet on its node, from `iptables -S`")),
        )?;
        for group in chains.groups {
            self.say(&format!("  {}", group.join("\n  ")))?;
        }
        self.say("the sets in it, from `ipset save`")?;
        for set in sets {
            self.say(&format!("  {set}"))?;
        }
        self.say("")
    }

    fn conclude(&self, tally: &Tally) -> Result<DemoEnd, DemoError> {
        let took = format!("{:.1} s in all", self.started.elapsed().as_secs_f64());
        if tally.wrong == 0 {
            let verdict = self.paint.green(&format!("{} of {} as expected", tally.marks, tally.marks));
            self.say(&format!(
                "{verdict}; the slowest change was enforced after {}; {took}",
                milliseconds(tally.slowest)
            ))?;
            return Ok(DemoEnd::AsExpected);
        }
        self.say(&format!(
            "{}; {took}",
            self.paint.red(&format!("{} of {} NOT as expected", tally.wrong, tally.marks))
        ))?;
        Ok(DemoEnd::Otherwise)
    }

    /// Prints a line. A closed pipe counts as an interrupt.
    fn say(&self, text: &str) -> Result<(), DemoError> {
        self.interrupts.check()?;
        writeln!(io::stdout(), "{text}").map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => DemoError::Interrupted(nix::libc::SIGPIPE),
            _ => DemoError::io("print")(error),
        })
    }

    fn wait_for_enter(&self) -> Result<(), DemoError> {
        let Some(lines) = &self.enter else { return Ok(()) };
        self.say(&self.paint.dim("(Enter)"))?;
        loop {
            self.interrupts.check()?;
            match lines.recv_timeout(Duration::from_millis(50)) {
                Err(RecvTimeoutError::Timeout) => {}
                // If standard input ends, there are no more pauses.
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }
}

/// A message for each line of standard input. Its thread waits for ever; the process does not wait for it.
fn lines_of_stdin() -> Receiver<()> {
    let (line, lines) = mpsc::channel();
    thread::spawn(move || {
        let mut text = String::new();
        while io::stdin().read_line(&mut text).is_ok_and(|length| length > 0) && line.send(()).is_ok() {
            text.clear();
        }
    });
    lines
}

/// Of the marks that change, the first in each row and in each column: egress is enforced at the sender, ingress at the
/// receiver, and few probes are answered sooner than many.
fn sentinels(changed: &[Spot]) -> Vec<Spot> {
    let first_with = |same: &dyn Fn(&Spot) -> usize| {
        let mut seen = std::collections::BTreeSet::new();
        changed.iter().copied().filter(|spot| seen.insert(same(spot))).collect::<Vec<_>>()
    };
    let mut spots = first_with(&|spot| spot.row);
    spots.extend(first_with(&|spot| spot.column));
    spots.sort_unstable();
    spots.dedup();
    spots
}

/// What a step wrote, in words.
fn written(step: &StoryStep) -> String {
    let added = step.adds.iter().map(|(name, _)| (*name).to_owned());
    let relabelled = step.relabels.iter().map(|(name, _)| stage::pod_file(name));
    format!("wrote {}", added.chain(relabelled).collect::<Vec<_>>().join(" and "))
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_has_a_table_for_its_scene() {
        for scene in SCENES {
            let mut before: Option<ReachTable> = None;
            for step in scene.steps {
                let table = ReachTable::parse(step.expected).unwrap();
                let names: Vec<&str> = scene.cast.iter().map(|actor| actor.name).collect();
                let outside: Vec<&str> = scene.outsiders.iter().map(|outsider| outsider.name).collect();
                for (row, _) in &table.rows {
                    assert!(names.contains(&row.as_str()) || outside.contains(&row.as_str()), "{row}");
                }
                for column in &table.columns {
                    let pods = names.iter().filter(|name| name.ends_with(&format!("/{column}"))).count();
                    assert_eq!(pods + usize::from(outside.contains(&column.as_str())), 1, "{column}");
                }
                if let Some(before) = before {
                    let changed = before.differences(&table);
                    assert!(!changed.is_empty(), "{}: a step that changes nothing shows nothing", step.title);
                    assert!(!sentinels(&changed).is_empty());
                    assert!(!step.adds.is_empty() || !step.relabels.is_empty());
                } else {
                    assert!(
                        table.spots().all(|spot| table.mark(spot) == Some(table::Mark::Open)),
                        "a scene begins open"
                    );
                }
                before = Some(table);
            }
        }
    }

    #[test]
    fn manifests_do_not_overwrite_each_other() {
        let mut seen = std::collections::BTreeSet::new();
        for scene in SCENES {
            assert!(scene.cast.iter().all(|actor| seen.insert(stage::pod_file(actor.name))));
            assert!(scene.namespaces.iter().all(|(name, _)| seen.insert(stage::namespace_file(name))));
            let added = scene.steps.iter().flat_map(|step| step.adds);
            assert!(added.into_iter().all(|(name, _)| seen.insert((*name).to_owned())));
        }
    }

    #[test]
    fn change_is_watched_in_every_affected_row_and_column() {
        let spot = |(row, column, place)| Spot { row, column, place };
        let changed = [(0, 1, 0), (0, 1, 1), (0, 2, 0), (1, 2, 2)].map(spot);
        assert_eq!(sentinels(&changed), [(0, 1, 0), (0, 2, 0), (1, 2, 2)].map(spot));
        assert_eq!(sentinels(&[]), []);
    }
}
