//! What the monitor says of itself: event lines for the host library, one line on stderr for people.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use nix::time::{ClockId, clock_gettime};
use vmbox_config::{Event, ExitReason, Phase};

use crate::ending::Ending;

/// Where events go, if anywhere.
pub struct Reporter {
    events: Option<File>,
}

impl Reporter {
    /// Reports to this descriptor.
    pub fn new(events: Option<OwnedFd>) -> Self {
        Self {
            events: events.map(File::from),
        }
    }

    /// A phase ended now.
    pub fn phase(&mut self, phase: Phase) {
        self.phase_at(phase, monotonic_ns());
    }

    /// A phase ended then, in nanoseconds of CLOCK_MONOTONIC.
    pub fn phase_at(&mut self, phase: Phase, at_ns: u64) {
        self.send(&Event::Phase { phase, at_ns });
    }

    /// The VM has ended: the last event, and a line for people if it is bad news.
    pub fn exit(&mut self, ending: &Ending, guest_log: Vec<String>) {
        self.send(&Event::Exit {
            reason: ending.reason,
            message: ending.message.clone(),
            guest_log,
        });
        if ending.reason != ExitReason::Ended {
            // Not eprintln, which panics if nobody reads; the event has told.
            let _ = writeln!(std::io::stderr(), "vmbox-vmm: {}", ending.message);
        }
    }

    fn send(&mut self, event: &Event) {
        let Some(file) = &mut self.events else { return };
        let Ok(mut line) = serde_json::to_vec(event) else {
            return;
        };
        line.push(b'\n');
        if file.write_all(&line).is_err() {
            // The reader is gone; the lifeline, not this, tells whether the owner is.
            self.events = None;
        }
    }
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
