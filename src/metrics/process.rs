//! What the process uses, by the names that every Prometheus client gives it, and what its commands use.

use std::{
    fs,
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{Counter, Gauge, IntGauge, Registry};

use super::register;

/// Processor time and memory of this process, as of the last [`update`](Self::update).
#[derive(Debug)]
pub(super) struct Process {
    /// Held while the counters are raised: two scrapes at once would raise them twice.
    counters: Mutex<Counters>,
    resident: IntGauge,
}

#[derive(Debug)]
struct Counters {
    own: Counter,
    commands: Counter,
}

impl Process {
    /// The metrics, with the start of the process as of now.
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str| register(registry, Counter::new(name, help));
        let start = register(
            registry,
            Gauge::new("process_start_time_seconds", "Unix time of the start of the process."),
        )?;
        start.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        Ok(Self {
            counters: Mutex::new(Counters {
                own: counter("process_cpu_seconds_total", "Processor time of the process.")?,
                commands: counter(
                    "towpath_commands_cpu_seconds_total",
                    "Processor time of the commands that this process started, once they have ended.",
                )?,
            }),
            resident: register(
                registry,
                IntGauge::new("process_resident_memory_bytes", "Resident memory of the process."),
            )?,
        })
    }

    /// Reads the present values from `/proc`. Where that is not possible, the former ones stay.
    pub(super) fn update(&self) {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(usage) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Usage::parse) else {
            return;
        };
        let seconds = |ticks: u32| f64::from(ticks) / clock_ticks_per_second();
        for (counter, ticks) in [(&counters.own, usage.own), (&counters.commands, usage.commands)] {
            // A counter refuses to fall.
            counter.inc_by((seconds(ticks) - counter.get()).max(0.0));
        }
        let page = i64::try_from(rustix::param::page_size()).unwrap_or_default();
        self.resident.set(usage.resident_pages.saturating_mul(page));
    }
}

/// The unit of processor times in `/proc`: 100 on all usual machines.
fn clock_ticks_per_second() -> f64 {
    u32::try_from(rustix::param::clock_ticks_per_second()).map_or(100.0, f64::from)
}

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    /// Processor time of the process, in clock ticks.
    own: u32,
    /// Processor time of its children that ended and were waited for.
    commands: u32,
    /// Resident memory.
    resident_pages: i64,
}

impl Usage {
    fn parse(stat: &str) -> Option<Self> {
        // The second field is the program's name, which may contain spaces and parentheses.
        let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().collect();
        // proc_pid_stat(5) counts from 1, and the first one here is its third.
        let ticks = |number: usize| fields.get(number - 3)?.parse::<u32>().ok();
        Some(Self {
            own: ticks(14)?.saturating_add(ticks(15)?),
            commands: ticks(16)?.saturating_add(ticks(17)?),
            resident_pages: fields.get(24 - 3)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_the_last_parenthesis() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 900 80 0 0 150 25 40 10 20 0 5 0 600 12345678 512 18446744073709551615";
        assert_eq!(Usage::parse(stat), Some(Usage { own: 175, commands: 50, resident_pages: 512 }));
        assert_eq!(Usage::parse("7 (towpath) S 1"), None);
        assert_eq!(Usage::parse(""), None);
    }

    #[test]
    fn process_reports_its_memory_and_a_start_in_the_past() {
        let registry = Registry::new();
        let process = Process::new(&registry).unwrap();
        process.update();
        assert!(process.resident.get() > 100_000, "{}", process.resident.get());
        let names: Vec<String> = registry.gather().iter().map(|family| family.name().to_owned()).collect();
        let expected = [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_start_time_seconds",
            "towpath_commands_cpu_seconds_total",
        ];
        assert_eq!(names, expected);
    }
}
