//! One edge-triggered epoll for everything on the host's side, nested in the worker's own.
//!
//! Edge-triggered, so that a socket that the guest has no credit or no buffer for costs nothing until something
//! changes: there is no interest to switch off, and a hung-up peer can't make the worker spin.
//! Nested, so that the worker sees one descriptor however many connections come and go.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

const DOOR: u64 = 0;
const TIMER: u64 = 1;
const WAKE: u64 = 2;
/// Where the ids of sockets begin.
pub const FIRST_ID: u64 = 3;

/// How many reports are taken at once; what is left keeps the epoll descriptor readable.
const BATCH: usize = 64;

/// One report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// A host program wants in.
    Door,
    /// The time given to [`Poller::wake_after`] is over.
    Timer,
    /// A socket changed.
    Socket {
        id: u64,
        readable: bool,
        writable: bool,
        /// Both directions are over.
        hung_up: bool,
    },
}

/// Epoll, a timer and a way to be called again.
pub struct Poller {
    epoll: Epoll,
    timer: TimerFd,
    wake: EventFd,
}

impl Poller {
    /// Watches `door`.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(door: RawFd) -> io::Result<Self> {
        let poller = Self {
            epoll: Epoll::new()?,
            timer: TimerFd::new().map_err(io::Error::from)?,
            wake: EventFd::new(EFD_NONBLOCK)?,
        };
        poller.add(door, DOOR, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        poller.add(poller.timer.as_raw_fd(), TIMER, EventSet::IN)?;
        poller.add(poller.wake.as_raw_fd(), WAKE, EventSet::IN)?;
        Ok(poller)
    }

    /// For the worker's epoll; readable while [`Poller::poll`] has reports.
    pub fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Reports on a socket from now on, by `id`.
    ///
    /// # Errors
    /// The kernel has no memory or the user no watches left.
    pub fn watch(&self, fd: RawFd, id: u64) -> io::Result<()> {
        self.add(fd, id, interest(false))
    }

    /// Whether room in the socket is reported as well. What is ready now is reported again.
    ///
    /// # Errors
    /// The socket is not watched.
    pub fn rewatch(&self, fd: RawFd, id: u64, room: bool) -> io::Result<()> {
        self.epoll.ctl(
            ControlOperation::Modify,
            fd,
            EpollEvent::new(interest(room), id),
        )
    }

    /// No reports any more.
    pub fn unwatch(&self, fd: RawFd) {
        // Fails only if it was not watched.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    /// Has [`Ready::Timer`] reported after `delay`; replaces an earlier one.
    pub fn wake_after(&mut self, delay: Duration) {
        // A delay of zero would disarm it.
        let delay = delay.max(Duration::from_millis(1));
        if let Err(error) = self.timer.reset(delay, None) {
            tracing::warn!(%error, "vsock: timer");
        }
    }

    /// Makes the worker call again at once, after it had a chance to look at its own orders.
    pub fn call_again(&self) {
        // Full means that it is set.
        let _ = self.wake.write(1);
    }

    /// Up to a batch of reports, without waiting.
    pub fn poll(&mut self, reports: &mut Vec<Ready>) {
        let mut events = [EpollEvent::default(); BATCH];
        let count = self.epoll.wait(0, &mut events).unwrap_or(0);
        reports.clear();
        for event in events.iter().take(count) {
            match event.data() {
                DOOR => reports.push(Ready::Door),
                TIMER => {
                    // Reported as readable, so this does not wait.
                    let _ = self.timer.wait();
                    reports.push(Ready::Timer);
                }
                WAKE => {
                    let _ = self.wake.read();
                }
                id => reports.push(report(id, event.event_set())),
            }
        }
    }

    fn add(&self, fd: RawFd, id: u64, events: EventSet) -> io::Result<()> {
        self.epoll
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, id))
    }
}

fn interest(room: bool) -> EventSet {
    let events = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
    if room { events | EventSet::OUT } else { events }
}

fn report(id: u64, events: EventSet) -> Ready {
    let error = events.contains(EventSet::ERROR);
    Ready::Socket {
        id,
        readable: error || events.intersects(EventSet::IN | EventSet::READ_HANG_UP),
        writable: error || events.contains(EventSet::OUT),
        hung_up: events.contains(EventSet::HANG_UP),
    }
}
