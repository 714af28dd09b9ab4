//! The slot of a NIC: what is in it now, shared by the monitor, the configuration space and the handler.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::port::Port;
use crate::device::Interrupt;

/// The slot has a port already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is something in this slot already")]
pub struct Occupied;

pub(super) struct Slot {
    content: Mutex<Content>,
    /// STATUS of the configuration space.
    up: AtomicBool,
    changed: EventFd,
}

#[derive(Default)]
struct Content {
    port: Option<Arc<dyn Port>>,
    /// While a driver is at work.
    interrupt: Option<Arc<dyn Interrupt>>,
}

impl Slot {
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            content: Mutex::default(),
            up: AtomicBool::new(false),
            changed: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Whether the driver is told that its link is up.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::SeqCst)
    }

    pub fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.content().interrupt = interrupt;
    }

    /// Readable after each change of the port.
    pub fn changed_fd(&self) -> RawFd {
        self.changed.as_raw_fd()
    }

    /// The port of now. What changes later makes [`Slot::changed_fd`] readable again.
    pub fn look(&self) -> Option<Arc<dyn Port>> {
        // WouldBlock: nothing has changed, which is fine.
        let _ = self.changed.read();
        self.content().port.clone()
    }

    /// Empties the slot if `gone` is still what is in it.
    pub fn lose(&self, gone: &Arc<dyn Port>) {
        let mut content = self.content();
        if content
            .port
            .as_ref()
            .is_some_and(|port| Arc::ptr_eq(port, gone))
        {
            self.put(&mut content, None);
        }
    }

    fn put(&self, content: &mut Content, port: Option<Arc<dyn Port>>) {
        self.up.store(port.is_some(), Ordering::SeqCst);
        content.port = port;
        // WouldBlock: the counter is full, so the handler is about to look.
        let _ = self.changed.write(1);
        if let Some(interrupt) = &content.interrupt {
            interrupt.signal_config();
        }
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The monitor's hand on a NIC. Clones are the same NIC.
#[derive(Clone)]
pub struct NicHandle(Arc<Slot>);

impl NicHandle {
    pub(super) fn new(slot: Arc<Slot>) -> Self {
        Self(slot)
    }

    /// Puts a port into the slot: the guest's link comes up.
    ///
    /// # Errors
    /// [`Occupied`].
    pub fn attach(&self, port: Arc<dyn Port>) -> Result<(), Occupied> {
        let mut content = self.0.content();
        if content.port.is_some() {
            return Err(Occupied);
        }
        self.0.put(&mut content, Some(port));
        Ok(())
    }

    /// Takes the port out: the guest's link goes down, and the port is dropped soon after. False if there is none.
    pub fn detach(&self) -> bool {
        let mut content = self.0.content();
        let was_there = content.port.is_some();
        if was_there {
            self.0.put(&mut content, None);
        }
        was_there
    }

    /// Whether the slot has a port.
    pub fn is_attached(&self) -> bool {
        self.0.is_up()
    }
}
