//! Why the main thread wakes up: a closed enum over one epoll.

use std::io;
use std::os::fd::RawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A reason to wake up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// A vCPU has put an ending into the slot.
    Ending,
    /// SIGTERM, SIGINT or SIGHUP, for a monitor without a lifeline.
    Signal,
    /// The owner's end of the lifeline moved.
    Lifeline,
    /// The guest has taken or given back extra memory.
    Memory,
    /// Someone connects to the control socket.
    ControlListener,
    /// A control connection, by its number, is readable.
    ControlClient(u32),
}

impl Wake {
    fn token(self) -> u64 {
        match self {
            Self::Ending => 0,
            Self::Signal => 1,
            Self::Lifeline => 2,
            Self::ControlListener => 3,
            Self::Memory => 4,
            Self::ControlClient(number) => 1 << 32 | u64::from(number),
        }
    }

    fn from_token(token: u64) -> Self {
        match token {
            0 => Self::Ending,
            1 => Self::Signal,
            2 => Self::Lifeline,
            3 => Self::ControlListener,
            4 => Self::Memory,
            client => Self::ControlClient(client as u32),
        }
    }
}

/// The descriptors that wake the main thread.
pub struct Wakes {
    epoll: Epoll,
}

impl Wakes {
    /// Nothing yet.
    ///
    /// # Errors
    /// No epoll descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new()?,
        })
    }

    /// Wakes for `wake` while `fd` is readable. Closing `fd` ends it.
    ///
    /// # Errors
    /// epoll refuses the descriptor.
    pub fn add(&self, fd: RawFd, wake: Wake) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Add,
            fd,
            EpollEvent::new(EventSet::IN, wake.token()),
        )
    }

    /// Sleeps until there is a reason not to.
    ///
    /// # Errors
    /// epoll fails.
    pub fn wait(&self) -> io::Result<Vec<Wake>> {
        let mut events = [EpollEvent::default(); 16];
        loop {
            match self.epoll.wait(-1, &mut events) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    return Ok(events
                        .iter()
                        .take(count)
                        .map(|e| Wake::from_token(e.data()))
                        .collect());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_what_they_were() {
        for wake in [
            Wake::Ending,
            Wake::Signal,
            Wake::Lifeline,
            Wake::Memory,
            Wake::ControlListener,
            Wake::ControlClient(0),
            Wake::ControlClient(u32::MAX),
        ] {
            assert_eq!(Wake::from_token(wake.token()), wake);
        }
    }
}
