//! How a VM ended, and the slot into which whoever notices first puts it.

use std::io;
use std::sync::{Mutex, PoisonError};

use vmbox_config::ExitReason;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::vcpu::exit::GuestEnd;

/// Why the VM ended, with one line for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// Why.
    pub reason: ExitReason,
    /// The cause and what to do.
    pub message: String,
}

impl Ending {
    /// An ending of this kind.
    pub fn new(reason: ExitReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// What a vCPU saw. Whether a reset was a panic is only known from the guest's log.
    pub fn of_guest(vcpu: usize, end: GuestEnd) -> Self {
        match end {
            GuestEnd::Reset => Self::new(ExitReason::Ended, "the guest ended"),
            GuestEnd::Crashed(cause) => Self::new(
                ExitReason::TripleFault,
                format!(
                    "the guest crashed on vCPU {vcpu}: {cause}; run with the serial console on to see its last words"
                ),
            ),
        }
    }
}

/// Where vCPU threads leave the ending; the first one counts.
pub struct EndingSlot {
    ending: Mutex<Option<Ending>>,
    wake: EventFd,
}

impl EndingSlot {
    /// An empty slot.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            ending: Mutex::new(None),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Leaves `ending` unless there is one already, and wakes the main thread.
    pub fn propose(&self, ending: Ending) {
        self.ending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(ending);
        // The counter can't be full: it is written once per vCPU.
        let _ = self.wake.write(1);
    }

    /// The ending, if there is one.
    pub fn take(&self) -> Option<Ending> {
        self.ending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Readable once there is an ending.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_ending_counts() {
        let slot = EndingSlot::new().unwrap();
        slot.propose(Ending::of_guest(
            3,
            GuestEnd::Crashed("triple fault".into()),
        ));
        slot.propose(Ending::of_guest(0, GuestEnd::Reset));
        assert_eq!(slot.take().unwrap().reason, ExitReason::TripleFault);
        assert_eq!(slot.take(), None);
    }
}
