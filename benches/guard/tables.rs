//! The cost of writing the guard's tables: all of them, and the difference for one pod.

use std::time::Instant;

use crate::{Size, figures, testbed::Bed};
use towpath::lab::Topology;

pub(crate) fn measure(size: Size) {
    println!("milliseconds of `nft -f -`, median (best) of {} runs; the most memory of nft", size.rounds);
    for topology in [Topology::Bridge, Topology::PointToPoint] {
        for &pods in size.pods {
            let bed = Bed::new(topology, pods);
            let (all, fewer) = (bed.guard(pods), bed.guard(pods - 1));
            let whole = all.whole();
            let (more, less) = (all.difference(&fewer), fewer.difference(&all));
            let (mut wholes, mut mores, mut memory) = (Vec::new(), Vec::new(), 0);
            for _ in 0..size.rounds {
                wholes.push(nft(&bed, &whole));
                nft(&bed, &less);
                mores.push(nft(&bed, &more));
                memory = memory.max(most_memory(&bed, &whole));
            }
            println!(
                "  {topology:?}, {pods} pods: whole {} ({} bytes of text), one more pod {} ({} bytes), {:.1} MiB",
                figures(wholes),
                whole.len(),
                figures(mores),
                more.len(),
                f64::from(memory) / 1024.0,
            );
        }
    }
}

fn nft(bed: &Bed, text: &str) -> f64 {
    let start = Instant::now();
    bed.succeed("nft", &["-f", "-"], text);
    start.elapsed().as_secs_f64() * 1e3
}

/// In KiB; 0 without GNU time.
fn most_memory(bed: &Bed, text: &str) -> u32 {
    let mut command = std::process::Command::new("/usr/bin/time");
    command.args(["-f", "%M", "nft", "-f", "-"]);
    let output = bed.netns().output(command, text).ok();
    output.and_then(|output| String::from_utf8_lossy(&output.stderr).trim().parse().ok()).unwrap_or(0)
}
