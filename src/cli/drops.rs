//! `towpath drops`: what the daemon of this node dropped, between whom, and why.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Write as _},
    thread,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use jiff::{SignedDuration, Timestamp};

use super::{Ended, Text, client::DaemonArgs, print};
use crate::{
    drops::{Page, Record, record::escaped},
    model::ObjectKey,
};

/// How long to wait before a daemon that is restarting is asked again.
const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct DropsArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
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
    /// The output format; with `json` and `--follow` one record a line.
    #[arg(short, long, value_enum, default_value_t = Text::Text, env = "TOWPATH_OUTPUT")]
    output: Text,
}

fn ago(text: &str) -> Result<Duration, String> {
    let read: Option<SignedDuration> = text.parse().ok();
    let duration = read.and_then(|duration| Duration::try_from(duration).ok());
    duration.ok_or_else(|| format!("{text:?} is no time such as 10m or 1h30m"))
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
    let page = page(args)?;
    if let Some(off) = &page.off
        && page.records.is_empty()
    {
        let (node, off) = (escaped(&page.node), escaped(off));
        return Err(Ended::Failed(anyhow!("denied packets are not recorded on {node}: {off}")));
    }
    let now = SystemTime::now();
    let young: Vec<&Record> = page.records.iter().filter(|record| args.is_young(record, now)).collect();
    let shown = match args.output {
        Text::Text => text(&young),
        Text::Json if args.follow => lines(&young)?,
        Text::Json => super::json(&Page { records: young.into_iter().cloned().collect(), ..page.clone() })?,
    };
    print(&shown)?;
    if args.follow {
        return follow(args, page.next);
    }
    if page.records.is_empty() {
        eprintln!("no denied packets on {}", escaped(&page.node));
    }
    let not_told: u64 = page.not_told.values().sum();
    if not_told > 0 {
        let reasons: Vec<String> =
            page.not_told.iter().filter(|(_, count)| **count > 0).map(reason).collect();
        eprintln!("{not_told} denied packets are in no record: {}", reasons.join(", "));
    }
    Ok(())
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
    Ok(serde_json::from_str(&answer.body).context("the answer is no page of towpath's drop log")?)
}

/// Prints what is dropped from now on, until nobody reads it. A daemon that is restarted is asked again.
fn follow(args: &DropsArgs, mut since: u64) -> Result<(), Ended> {
    let mut out = std::io::stdout();
    loop {
        let mut written = Ok(());
        let result = args.daemon.lines(&args.path(Some(since), true), |line| {
            let Ok(record) = serde_json::from_str::<Record>(line) else { return true };
            since = since.max(record.cursor);
            let shown = match args.output {
                Text::Text => record.line(),
                Text::Json => line.to_owned(),
            };
            written = writeln!(out, "{shown}").and_then(|()| out.flush());
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
