//! The table of attacks: rows as data, how they are sent, and the report of those that arrived.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use towpath::{lab::frame::Token, model::Family};

use crate::{
    bed::{Bed, Host, Setting},
    conntrack,
};

/// How long required frames may take to arrive: far more than they need, even on a busy machine.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// What must happen to a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expect {
    /// A control: it is allowed and arrives, which shows that the sender works and that not too much is denied.
    Arrives,
    /// An attack.
    Never,
    /// It may arrive: there is no defence, for the reason in SECURITY.md. The table shows it.
    Undefended,
}

/// When a frame is sent: later stages must not disturb earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Together with all others.
    Normal,
    /// After the connection tables of the nodes were flushed.
    Flushed,
    /// At the end: it may corrupt the caches of neighbours and bridges.
    Poison,
}

/// One row.
#[derive(Clone, Debug)]
pub(crate) struct Attack {
    /// Its row in SECURITY.md.
    pub(crate) topic: &'static str,
    pub(crate) name: String,
    pub(crate) from: Host,
    /// The host that must, or must not, receive it.
    pub(crate) to: Host,
    pub(crate) family: Option<Family>,
    pub(crate) token: Token,
    pub(crate) frames: Vec<Vec<u8>>,
    pub(crate) expect: Expect,
    pub(crate) stage: Stage,
}

/// A table under construction.
pub(crate) struct Table<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) rows: Vec<Attack>,
    topic: &'static str,
    family: Option<Family>,
    stage: Stage,
}

impl<'a> Table<'a> {
    pub(crate) fn new(bed: &'a Bed) -> Self {
        Self { bed, rows: Vec::new(), topic: "", family: None, stage: Stage::Normal }
    }

    /// The following rows belong to this row of SECURITY.md, this family and this stage.
    pub(crate) fn section(&mut self, topic: &'static str, family: Option<Family>, stage: Stage) {
        (self.topic, self.family, self.stage) = (topic, family, stage);
    }

    /// An attack.
    pub(crate) fn never(
        &mut self,
        name: impl Into<String>,
        from: Host,
        to: Host,
        frames: impl FnOnce(&Bed, Token) -> Vec<Vec<u8>>,
    ) {
        self.add(Expect::Never, name.into(), from, to, frames);
    }

    /// A control.
    pub(crate) fn arrives(
        &mut self,
        name: impl Into<String>,
        from: Host,
        to: Host,
        frames: impl FnOnce(&Bed, Token) -> Vec<Vec<u8>>,
    ) {
        self.add(Expect::Arrives, name.into(), from, to, frames);
    }

    /// An attack that is known to have no defence.
    pub(crate) fn undefended(
        &mut self,
        name: impl Into<String>,
        from: Host,
        to: Host,
        frames: impl FnOnce(&Bed, Token) -> Vec<Vec<u8>>,
    ) {
        self.add(Expect::Undefended, name.into(), from, to, frames);
    }

    fn add(
        &mut self,
        expect: Expect,
        name: String,
        from: Host,
        to: Host,
        frames: impl FnOnce(&Bed, Token) -> Vec<Vec<u8>>,
    ) {
        let token = self.bed.token();
        let frames = frames(self.bed, token);
        let (topic, family, stage) = (self.topic, self.family, self.stage);
        self.rows.push(Attack { topic, name, from, to, family, token, frames, expect, stage });
    }

    /// Keeps the rows that disturb nothing, controls included, for another run with this topic.
    pub(crate) fn repeat_as(&mut self, topic: &'static str) {
        self.rows.retain(|row| row.expect != Expect::Undefended && row.stage == Stage::Normal);
        for row in &mut self.rows {
            row.name = format!("{}: {}", row.topic, row.name);
            row.topic = topic;
        }
    }

    /// Sends the frames of all rows.
    pub(crate) fn send(&self) {
        for row in &self.rows {
            for frame in &row.frames {
                self.bed.send(row.from, frame);
            }
        }
    }

    /// Sends everything, stage after stage, controls before attacks; returns what arrived, in the order of the rows.
    pub(crate) fn run(self) -> Vec<Outcome> {
        let bed = self.bed;
        for stage in [Stage::Normal, Stage::Flushed, Stage::Poison] {
            if !self.rows.iter().any(|row| row.stage == stage) {
                continue;
            }
            if stage == Stage::Flushed {
                for node in 0..2 {
                    conntrack::flush(bed.netns(Host::Node(node)));
                }
            }
            let of = |control: bool| {
                self.rows
                    .iter()
                    .filter(move |row| row.stage == stage && (row.expect == Expect::Arrives) == control)
            };
            let send = |row: &Attack| row.frames.iter().for_each(|frame| bed.send(row.from, frame));
            // The only timeout is for required frames that do not arrive.
            let mut until = Instant::now() + ARRIVES_WITHIN;
            let mut missing: Vec<&Attack> = of(true).collect();
            while !missing.is_empty() && Instant::now() < until {
                for row in &missing {
                    send(row);
                }
                let again = Instant::now() + Duration::from_millis(500);
                while !missing.is_empty() && Instant::now() < again {
                    std::thread::sleep(Duration::from_millis(10));
                    let before = missing.len();
                    missing.retain(|row| !bed.receivers(row.token).contains(&row.to));
                    if missing.len() < before {
                        until = Instant::now() + ARRIVES_WITHIN / 4;
                    }
                }
            }
            of(false).for_each(send);
            bed.settle();
        }
        let outcome =
            |attack: Attack| Outcome { arrived: bed.receivers(attack.token).contains(&attack.to), attack };
        self.rows.into_iter().map(outcome).collect()
    }
}

/// A row whose result was observed in another way than by capturing a frame.
pub(crate) fn observed(
    bed: &Bed,
    topic: &'static str,
    name: impl Into<String>,
    (from, to): (Host, Host),
    (expect, arrived): (Expect, bool),
) -> Outcome {
    let attack = Attack {
        topic,
        name: name.into(),
        from,
        to,
        family: None,
        token: bed.token(),
        frames: Vec::new(),
        expect,
        stage: Stage::Normal,
    };
    Outcome { attack, arrived }
}

/// A row, and its result.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) attack: Attack,
    pub(crate) arrived: bool,
}

impl Outcome {
    /// Whether the result is as required.
    fn is_right(&self) -> bool {
        match self.attack.expect {
            Expect::Arrives => self.arrived,
            Expect::Never => !self.arrived,
            Expect::Undefended => true,
        }
    }
}

/// Prints the numbers, and fails if a result is not as required.
pub(crate) fn report(bed: &Bed, outcomes: &[Outcome]) {
    record(bed, outcomes);
    let documented = include_str!("../../SECURITY.md");
    for row in outcomes {
        let line = format!("\n| {} |", row.attack.topic);
        assert!(documented.contains(&line), "SECURITY.md has no line {line:?}");
    }
    let of = |expect| outcomes.iter().filter(move |row| row.attack.expect == expect);
    let arrived = |expect| of(expect).filter(|row| row.arrived).count();
    let Setting { topology, variant } = bed.setting;
    println!(
        "{topology:?}, {variant:?}: {} of {} attacks arrived, {} of {} controls, {} of {} undefended",
        arrived(Expect::Never),
        of(Expect::Never).count(),
        arrived(Expect::Arrives),
        of(Expect::Arrives).count(),
        arrived(Expect::Undefended),
        of(Expect::Undefended).count(),
    );
    let wrong = |expect| {
        of(expect).filter(|row| !row.is_right()).fold(String::new(), |mut text, row| {
            let Attack { topic, name, from, to, .. } = &row.attack;
            let family = family(row.attack.family);
            let (from, to) = (bed.name(*from), bed.name(*to));
            let _infallible = write!(text, "\n  {topic}: {name}, {family}, {from} -> {to}");
            text
        })
    };
    let (leaks, outages) = (wrong(Expect::Never), wrong(Expect::Arrives));
    assert!(
        leaks.is_empty() && outages.is_empty(),
        "{topology:?}, {variant:?}\nattacks that arrived:{leaks}\nallowed frames that did not:{outages}\n{}",
        bed.logs()
    );
}

const fn family(family: Option<Family>) -> &'static str {
    match family {
        Some(Family::V4) => "IPv4",
        Some(Family::V6) => "IPv6",
        None => "both",
    }
}

/// How many arrived, and of how many, for each lab.
type Counts = BTreeMap<String, (usize, usize)>;

/// The lines of all labs so far.
static RECORDED: Mutex<BTreeMap<(&'static str, String), Counts>> = Mutex::new(BTreeMap::new());

/// Writes the whole table as Markdown to the file that `TOWPATH_ATTACK_TABLE` names.
///
/// One line for each attack, over all its senders, receivers and families; one column for each lab, with the number of
/// them that arrived.
fn record(bed: &Bed, outcomes: &[Outcome]) {
    let Some(path) = std::env::var_os("TOWPATH_ATTACK_TABLE") else { return };
    let Setting { topology, variant } = bed.setting;
    let lab = format!("{topology:?}, {}", variant.name());
    let mut recorded = RECORDED.lock().unwrap();
    for row in outcomes {
        let expect = match row.attack.expect {
            Expect::Arrives => "must arrive",
            Expect::Never => "must not",
            Expect::Undefended => "may",
        };
        // For rows that are sent again the topic is enough.
        let name = row.attack.name.split(": ").next().unwrap_or_default();
        let line = format!("{name} | {} | {expect}", family(row.attack.family));
        let counts = recorded.entry((row.attack.topic, line)).or_default().entry(lab.clone()).or_default();
        counts.0 += usize::from(row.arrived);
        counts.1 += 1;
    }
    let labs: std::collections::BTreeSet<&String> = recorded.values().flat_map(BTreeMap::keys).collect();
    let mut text = String::from("| topic | frame | family | expected |");
    for lab in &labs {
        let _infallible = write!(text, " {lab} |");
    }
    text.push_str("\n|---|---|---|---|");
    text.push_str(&"---|".repeat(labs.len()));
    for ((topic, line), counts) in &*recorded {
        let _infallible = write!(text, "\n| {topic} | {line} |");
        for lab in &labs {
            let _infallible = match counts.get(*lab) {
                Some((arrived, all)) => write!(text, " {arrived} of {all} |"),
                None => write!(text, " |"),
            };
        }
    }
    text.push('\n');
    fs::write(&path, text).expect("the table");
}
