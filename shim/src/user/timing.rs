//! When each phase of a run was over, for `--timing`.

use std::{io::Write, sync::Mutex};

use vmbox_config::Phase;

/// Phases with their CLOCK_MONOTONIC nanoseconds, counted from the start of this program.
#[derive(Debug)]
pub struct Timing {
    start_ns: u64,
    phases: Mutex<Vec<(&'static str, u64)>>,
}

impl Timing {
    /// Starts the clock.
    pub fn start() -> Self {
        Self {
            start_ns: now_ns(),
            phases: Mutex::new(Vec::new()),
        }
    }

    /// A phase of ours is over.
    pub fn mark(&self, phase: &'static str) {
        self.mark_at(phase, now_ns());
    }

    /// A phase of the monitor was over at `at_ns`.
    pub fn phase(&self, phase: Phase, at_ns: u64) {
        let name = match phase {
            Phase::MonitorStarted => "monitor exec",
            Phase::KvmReady => "kvm ready",
            Phase::KernelEntry => "kernel entry",
        };
        self.mark_at(name, at_ns);
    }

    fn mark_at(&self, phase: &'static str, at_ns: u64) {
        if let Ok(mut phases) = self.phases.lock() {
            phases.push((phase, at_ns));
        }
    }

    /// One line each, in the order of time: `vmbox: timing: 12.345 ms kernel entry`.
    pub fn report(&self, out: &mut impl Write) {
        let Ok(mut phases) = self.phases.lock() else {
            return;
        };
        phases.sort_by_key(|(_, at_ns)| *at_ns);
        for (phase, at_ns) in phases.iter() {
            let us = at_ns.saturating_sub(self.start_ns) / 1000;
            // Nobody to tell is no reason to fail.
            let _ = writeln!(
                out,
                "vmbox: timing: {}.{:03} ms {phase}",
                us / 1000,
                us % 1000
            );
        }
    }
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    seconds * 1_000_000_000 + nanos
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_reported_in_the_order_of_time() {
        let timing = Timing::start();
        timing.mark("exit");
        timing.phase(Phase::KernelEntry, timing.start_ns + 1_500_000);
        let mut out = Vec::new();
        timing.report(&mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("vmbox: timing: 1.500 ms kernel entry\n"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2);
    }
}
