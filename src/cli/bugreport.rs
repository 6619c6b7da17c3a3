//! `towpath bugreport`: what is needed to analyse a fault remotely, in one file.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow};
use clap::Args;
use flate2::{Compression, write::GzEncoder};
use jiff::{Timestamp, Unit};

use super::{Ended, client::DaemonArgs, print, status};
use crate::{
    dataplane::{
        command::Commands,
        kernel::survey::{Sheet, survey},
    },
    web::Report,
};

#[derive(Debug, Args)]
pub(super) struct BugreportArgs {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Where to write it: a folder, a file name that ends with .tar.gz, or - for standard output, for a container
    /// without a writable folder.
    #[arg(long, value_name = "DIR|FILE|-", default_value = ".", env = "TOWPATH_BUGREPORT_OUTPUT")]
    output: PathBuf,
}

/// The first file of the report.
const ABOUT: &str = "\
What a bug report of towpath contains, all of it readable text:

status.json, status.txt  what the daemon enforces: names and addresses of the pods of
                         this node, the policies that apply to them, what is wrong
metrics.txt              its metrics
drops.json               the packets that it denied lately: between whom, and why
iptables*, ip6tables*    the filter tables of both variants with counters, rules of
                         other programs included
nft-*-towpath.txt        the tables of the interface guard
ipset.txt                the sets of towpath and their members
versions.txt             versions of towpath, iptables, ipset and nft
kernel.txt, modules.txt, os-release.txt, bridge-switches.txt, ip-forward.txt,
conntrack-*.txt          how the kernel is set

It contains no Secret, no environment and no content of any packet. It does contain names
and addresses of the cluster: look through it before you hand it on.
";

pub(super) fn bugreport(args: &BugreportArgs) -> Result<(), Ended> {
    let to_stdout = args.output.as_os_str() == "-";
    let is_archive = args.output.to_string_lossy().ends_with(".tar.gz");
    if !to_stdout && !is_archive && !args.output.is_dir() {
        let output = args.output.display();
        return Err(Ended::WrongUse(anyhow!(
            "{output} is neither a folder nor a file name that ends with .tar.gz, nor -"
        )));
    }
    let mut sheets = requested(&args.daemon);
    sheets.extend(survey(&Commands::default()));
    let failed: Vec<String> = sheets
        .iter()
        .filter_map(|sheet| sheet.found.as_ref().err().map(|error| format!("{}: {error}", sheet.name)))
        .collect();
    let now = SystemTime::now();
    let stem = format!("towpath-bugreport-{}", moment(now));
    let is_folder = args.output.is_dir();
    let file = if is_folder { args.output.join(format!("{stem}.tar.gz")) } else { args.output.clone() };
    if to_stdout {
        write(io::stdout().lock(), &stem, now, &sheets, &failed).context("writing to standard output")?;
    } else {
        // Readable only by its owner: it describes the whole node.
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file);
        opened
            .map_err(anyhow::Error::from)
            .and_then(|opened| write(opened, &stem, now, &sheets, &failed))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    for failure in &failed {
        eprintln!("not in it: {failure}");
    }
    if to_stdout { Ok(()) } else { print(&format!("{}\n", file.display())) }
}

/// The daemon's answers.
fn requested(daemon: &DaemonArgs) -> Vec<Sheet> {
    let ask =
        |path: &str| daemon.get(path).map(|answer| answer.body).map_err(|error| super::with_causes(&error));
    let report = ask("/status");
    let readable = report.clone().and_then(|body| {
        let report: Report = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        Ok(status::text(&report))
    });
    vec![
        Sheet::new("status.json", report),
        Sheet::new("status.txt", readable),
        Sheet::new("metrics.txt", ask("/metrics")),
        Sheet::new("drops.json", ask("/drops")),
        Sheet::new("readyz.txt", ask("/readyz")),
        Sheet::new("livez.txt", ask("/livez")),
    ]
}

/// `20261121T123928Z`.
fn moment(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).and_then(|time| time.round(Unit::Second));
    time.map_or_else(|_| "undated".to_owned(), |time| time.to_string().replace(['-', ':'], ""))
}

fn write(
    to: impl io::Write,
    stem: &str,
    now: SystemTime,
    sheets: &[Sheet],
    failed: &[String],
) -> anyhow::Result<()> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut archive = tar::Builder::new(GzEncoder::new(to, Compression::default()));
    let mut add = |name: &str, text: &str| -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(text.len()).unwrap_or(u64::MAX));
        header.set_mode(0o644);
        header.set_mtime(seconds);
        archive.append_data(&mut header, format!("{stem}/{name}"), text.as_bytes())
    };
    let mut about = ABOUT.to_owned();
    if !failed.is_empty() {
        about.push_str("\nWhat could not be looked at:\n\n");
        about.extend(failed.iter().flat_map(|failure| ["- ", failure, "\n"]));
    }
    add("README.txt", &about)?;
    for sheet in sheets {
        match &sheet.found {
            Ok(text) => add(&sheet.name, text)?,
            Err(error) => add(&sheet.name, &format!("could not be looked at: {error}\n"))?,
        }
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}
