//! What the vCPU threads should be doing, and how many of them are parked: the one place where they wait.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A vCPU did not leave the guest within the time that a kick can take.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{missing} vCPU(s) did not stop within {} s", PAUSE_DEADLINE.as_secs())]
pub struct NotParked {
    missing: usize,
}

const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

const PARKED: u8 = 0;
const RUNNING: u8 = 1;
const STOPPED: u8 = 2;

/// The answer to a vCPU thread that asks whether it may enter the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Enter.
    Run,
    /// End the thread.
    Stop,
}

/// See the module.
pub struct Gate {
    wanted: AtomicU8,
    parked: Mutex<usize>,
    changed: Condvar,
    vcpus: usize,
}

impl Gate {
    /// A closed gate for this many vCPUs.
    pub fn new(vcpus: usize) -> Self {
        Self {
            wanted: AtomicU8::new(PARKED),
            parked: Mutex::new(0),
            changed: Condvar::new(),
            vcpus,
        }
    }

    /// Called by a vCPU thread before each entry into the guest; blocks while the gate is closed.
    pub fn admit(&self) -> Admission {
        match self.wanted.load(Ordering::Acquire) {
            RUNNING => Admission::Run,
            STOPPED => Admission::Stop,
            _ => self.park(),
        }
    }

    fn park(&self) -> Admission {
        let mut parked = self.lock();
        *parked += 1;
        self.changed.notify_all();
        loop {
            match self.wanted.load(Ordering::Acquire) {
                PARKED => {
                    parked = self
                        .changed
                        .wait(parked)
                        .unwrap_or_else(PoisonError::into_inner)
                }
                wanted => {
                    *parked -= 1;
                    return if wanted == RUNNING {
                        Admission::Run
                    } else {
                        Admission::Stop
                    };
                }
            }
        }
    }

    /// Called by a vCPU thread that ends without being told to: it will never run again, which is as good as parked.
    pub fn gone(&self) {
        *self.lock() += 1;
        self.changed.notify_all();
    }

    /// Opens the gate.
    pub fn resume(&self) {
        self.want(RUNNING);
    }

    /// Closes the gate; those inside the guest must be kicked.
    pub fn begin_pause(&self) {
        self.want(PARKED);
    }

    /// Sends every thread home, for good.
    pub fn stop(&self) {
        self.want(STOPPED);
    }

    /// Whether the gate is closed.
    pub fn is_paused(&self) -> bool {
        self.wanted.load(Ordering::Acquire) == PARKED
    }

    /// Waits until all vCPUs are parked.
    ///
    /// # Errors
    /// [`NotParked`] after five seconds.
    pub fn wait_parked(&self) -> Result<(), NotParked> {
        let (parked, _) = self
            .changed
            .wait_timeout_while(self.lock(), PAUSE_DEADLINE, |parked| *parked < self.vcpus)
            .unwrap_or_else(PoisonError::into_inner);
        match self.vcpus - *parked {
            0 => Ok(()),
            missing => Err(NotParked { missing }),
        }
    }

    fn want(&self, wanted: u8) {
        let _parked = self.lock();
        if self.wanted.load(Ordering::Acquire) != STOPPED {
            self.wanted.store(wanted, Ordering::Release);
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn pause_returns_when_every_thread_is_parked_and_stop_ends_them() {
        let gate = Arc::new(Gate::new(3));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = gate.clone();
                thread::spawn(move || while gate.admit() == Admission::Run {})
            })
            .collect();
        gate.resume();
        gate.begin_pause();
        gate.wait_parked().unwrap();
        assert!(gate.is_paused());
        gate.resume();
        gate.stop();
        for thread in threads {
            thread.join().unwrap();
        }
    }

    #[test]
    fn a_vcpu_that_has_ended_counts_as_parked() {
        let gate = Gate::new(1);
        gate.resume();
        gate.gone();
        gate.begin_pause();
        gate.wait_parked().unwrap();
    }

    #[test]
    fn a_stopped_gate_never_opens_again() {
        let gate = Gate::new(1);
        gate.stop();
        gate.resume();
        assert_eq!(gate.admit(), Admission::Stop);
    }
}
