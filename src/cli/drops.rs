//! `towpath drops`: what the daemon of this node, or those of all nodes, dropped, between whom, and why.

use std::{
    fmt::Write as _,
    io::{self, ErrorKind, Write as _},
    slice, thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use futures::{StreamExt as _, future, stream};
use jiff::{SignedDuration, Timestamp};

use super::{
    Ended, Text,
    all_nodes::{self, AllNodesArgs},
    client::DaemonArgs,
    print,
};
use crate::{
    drops::{Page, Record, record::escaped},
    k8s::daemons::{DaemonPod, Daemons},
    model::ObjectKey,
};

/// How long to wait before a daemon that is restarting is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// How many daemons are asked at once.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(super) struct DropsArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    nodes: AllNodesArgs,
    /// Go on with what is dropped from now on, until it is interrupted.
    #[arg(long, env = "TOWPATH_FOLLOW")]
    follow: bool,
    /// Only packets from or to this pod.
    #[arg(long, value_name = "NAMESPACE/POD", env = "TOWPATH_POD")]
    pod: Option<ObjectKey>,
    /// Only packets from or to pods of this namespace.
    #[arg(long, value_name = "NAMESPACE", env = "TOWPATH_NAMESPACE")]
    namespace: Option<String>,
    /// Only packets of the last minutes or hours, such as 10m or 1h.
    #[arg(long, value_name = "TIME", value_parser = ago, env = "TOWPATH_SINCE")]
    since: Option<Duration>,
    /// The output format; with `json` and `--follow`, or of several nodes, one record a line.
    #[arg(short, long, value_enum, default_value_t = Text::Text, env = "TOWPATH_OUTPUT")]
    output: Text,
}

fn ago(text: &str) -> Result<Duration, String> {
    let read: Option<SignedDuration> = text.parse().ok();
    let duration = read.and_then(|duration| Duration::try_from(duration).ok());
    duration.ok_or_else(|| format!("{text:?} is not a time such as 10m or 1h30m"))
}

impl DropsArgs {
    /// The path and query of a question.
    fn path(&self, since: Option<u64>, follow: bool) -> String {
        let mut path = "/drops".to_owned();
        let mut separator = '?';
        let mut parameter = |name: &str, value: &str| {
            // Writing into memory cannot fail.
            let _ = write!(path, "{separator}{name}={}", encoded(value));
            separator = '&';
        };
        if let Some(pod) = &self.pod {
            parameter("pod", &pod.to_string());
        }
        if let Some(namespace) = &self.namespace {
            parameter("namespace", namespace);
        }
        if let Some(since) = since {
            parameter("since", &since.to_string());
        }
        if follow {
            parameter("follow", "true");
        }
        path
    }

    /// Whether a record is as young as `--since` says.
    fn is_young(&self, record: &Record, now: SystemTime) -> bool {
        let Some(ago) = self.since else { return true };
        let last: Option<Timestamp> = record.last.parse().ok();
        let age = last.and_then(|last| now.duration_since(last.into()).ok());
        age.is_none_or(|age| age <= ago)
    }
}

/// A value in a query: whatever is not plain is written as its bytes.
fn encoded(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            text.push(byte.into());
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

pub(super) fn drops(args: &DropsArgs) -> Result<(), Ended> {
    if args.nodes.wanted() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(of_all_nodes(args));
    }
    let page = page(args)?;
    if let Some(off) = off(&page) {
        return Err(Ended::Failed(anyhow!("{off}")));
    }
    show(args, slice::from_ref(&page))?;
    if args.follow { follow(args, page.next) } else { Ok(()) }
}

/// A message if nothing is recorded on a node.
fn off(page: &Page) -> Option<String> {
    let off = page.off.as_ref().filter(|_| page.records.is_empty())?;
    Some(format!("denied packets are not recorded on {}: {}", escaped(&page.node), escaped(off)))
}

/// Prints these pages, in the order of time, and says what is in none.
fn show(args: &DropsArgs, pages: &[Page]) -> Result<(), Ended> {
    let now = SystemTime::now();
    let all = pages.iter().flat_map(|page| &page.records);
    let mut young: Vec<&Record> = all.filter(|record| args.is_young(record, now)).collect();
    if let [page] = pages
        && args.output == Text::Json
        && !args.follow
    {
        let records = young.into_iter().cloned().collect();
        return print(&super::json(&Page { records, ..page.clone() })?);
    }
    if pages.len() > 1 {
        young.sort_by(|a, b| a.last.cmp(&b.last));
    }
    match args.output {
        Text::Text => print(&text(&young))?,
        Text::Json => print(&lines(&young)?)?,
    }
    if args.follow {
        return Ok(());
    }
    let names: Vec<String> = pages.iter().map(|page| escaped(&page.node)).collect();
    if young.is_empty() {
        eprintln!("no denied packets on {}", names.join(", "));
    }
    for page in pages {
        let not_told: u64 = page.not_told.values().sum();
        if not_told > 0 {
            let reasons: Vec<String> =
                page.not_told.iter().filter(|(_, count)| **count > 0).map(reason).collect();
            let node = escaped(&page.node);
            eprintln!("{not_told} denied packets on {node} are in no record: {}", reasons.join(", "));
        }
    }
    Ok(())
}

/// Asks the daemons of all nodes. One that cannot be asked is named, and the others are shown.
async fn of_all_nodes(args: &DropsArgs) -> Result<(), Ended> {
    let (daemons, pods) = args.nodes.daemons().await?;
    let path = args.path(None, false);
    let (connect, question) = (&daemons, &*path);
    let asked = pods.iter().map(|pod| async move { (pod, all_nodes::get(connect, pod, question).await) });
    let answers: Vec<_> = stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut pages = Vec::new();
    let mut failed = 0;
    for (pod, answer) in answers {
        let page: anyhow::Result<Page> = answer.and_then(|body| Ok(serde_json::from_str(&body)?));
        match page {
            Ok(page) => {
                if let Some(off) = off(&page) {
                    eprintln!("{off}");
                }
                pages.push((pod, page));
            }
            Err(error) => {
                failed += 1;
                eprintln!("{}: {error:#}", escaped(&pod.node));
            }
        }
    }
    if pages.is_empty() {
        return Err(Ended::Failed(anyhow!("no daemon could be asked")));
    }
    let (pods, pages): (Vec<&DaemonPod>, Vec<Page>) = pages.into_iter().unzip();
    show(args, &pages)?;
    if args.follow {
        let each = pods.iter().zip(&pages).map(|(pod, page)| follow_node(args, &daemons, pod, page.next));
        // They end together, when nobody reads.
        future::select_all(each.map(Box::pin)).await.0?;
    }
    if failed > 0 { Err(Ended::Failed(anyhow!("{failed} nodes could not be asked"))) } else { Ok(()) }
}

/// Prints what a node drops from now on, until nobody reads it. A daemon that is restarted is asked again.
async fn follow_node(
    args: &DropsArgs,
    daemons: &Daemons,
    pod: &DaemonPod,
    mut since: u64,
) -> Result<(), Ended> {
    loop {
        let mut written = Ok(());
        let path = args.path(Some(since), true);
        let result = all_nodes::lines(daemons, pod, &path, |line| {
            written = tell(args.output, line, &mut since);
            written.is_ok()
        });
        let result = result.await;
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        if let Err(error) = result {
            eprintln!("{}: {error:#}; trying again", escaped(&pod.node));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Prints a line of an answer, and remembers how far it is read.
fn tell(output: Text, line: &str, since: &mut u64) -> io::Result<()> {
    let Ok(record) = serde_json::from_str::<Record>(line) else { return Ok(()) };
    *since = (*since).max(record.cursor);
    let mut out = io::stdout();
    match output {
        Text::Text => writeln!(out, "{}", record.line())?,
        Text::Json => writeln!(out, "{line}")?,
    }
    out.flush()
}

fn reason((reason, count): (&String, &u64)) -> String {
    format!("{} {count}", escaped(reason))
}

fn page(args: &DropsArgs) -> Result<Page, Ended> {
    let answer = args.daemon.get(&args.path(None, false))?;
    if answer.status != 200 {
        let address = args.daemon.address();
        let body = escaped(answer.body.trim());
        return Err(Ended::Failed(anyhow!("what listens at {address} answered {}: {body}", answer.status)));
    }
    Ok(serde_json::from_str(&answer.body).context("the answer is not a page of towpath's drop log")?)
}

/// Prints what is dropped from now on, until nobody reads it. A daemon that is restarted is asked again.
fn follow(args: &DropsArgs, mut since: u64) -> Result<(), Ended> {
    loop {
        let mut written = Ok(());
        let result = args.daemon.lines(&args.path(Some(since), true), |line| {
            written = tell(args.output, line, &mut since);
            written.is_ok()
        });
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            written => written?,
        }
        if let Err(error) = result {
            eprintln!("{error:#}; trying again");
        }
        thread::sleep(RETRY);
    }
}

fn text(records: &[&Record]) -> String {
    records.iter().map(|record| record.line() + "\n").collect()
}

fn lines(records: &[&Record]) -> Result<String, Ended> {
    let mut text = String::new();
    for record in records {
        text += &(serde_json::to_string(record)? + "\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_values_are_encoded() {
        assert_eq!(encoded("shop/db-0"), "shop/db-0");
        assert_eq!(encoded("a&b=c d"), "a%26b%3Dc%20d");
    }

    #[test]
    fn times_ago_are_read_as_people_write_them() {
        assert_eq!(ago("10m"), Ok(Duration::from_mins(10)));
        assert_eq!(ago("1h30m"), Ok(Duration::from_mins(90)));
        assert!(ago("-5m").is_err() && ago("soon").is_err());
    }
}
