//! What a virtio device is to the rest of the monitor: two small traits, one for each side of activation.
//!
//! ```text
//!            driver sets DRIVER_OK                 driver writes 0 to status
//! VirtioDevice ───── activate ─────► Handler ───────── dropped ─────────► VirtioDevice
//! (registers, any vCPU thread)       (rings, one worker thread)
//! ```
//!
//! The transport owns the `VirtioDevice` and calls it under its lock; the worker owns the `Handler`. They
//! share nothing unless the device makes them share it.

use std::os::fd::RawFd;
use std::sync::Arc;

use crate::queue::Virtqueue;
pub use crate::ram::GuestRam;

/// What a device is, fixed for its lifetime (virtio 1.2 §2.1–§2.2, §5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// Device id (virtio 1.2 §5), e.g. 4 for the entropy device.
    pub device_id: u32,
    /// A short name for logs and thread names, e.g. `rng`.
    pub name: &'static str,
    /// Device-specific feature bits that it offers. The transport adds `VIRTIO_F_VERSION_1`,
    /// `VIRTIO_RING_F_EVENT_IDX` and `VIRTIO_RING_F_INDIRECT_DESC` itself.
    pub features: u64,
    /// The maximum size of each queue, in descriptors; its length is the number of queues.
    pub queue_sizes: Vec<u16>,
    /// Shared memory regions (virtio 1.2 §2.10, §4.2.2): id, guest-physical address, length in bytes.
    pub shared_memory: Vec<SharedMemory>,
}

/// One shared memory region of a device, placed by the board before the device is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedMemory {
    /// `shmid`, the device type's own numbering.
    pub id: u8,
    /// Guest-physical base address.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
}

/// A virtio device before (and between) activations: its identity and its configuration space.
///
/// Called by the transport, on whichever vCPU thread touched a register, under the transport's lock:
/// nothing here may block.
pub trait VirtioDevice: Send {
    /// Identity, features, queues. Called once, when the device is attached.
    fn profile(&self) -> Profile;

    /// Reads device configuration space (virtio 1.2 §2.5) at `offset` into `data`. Bytes past the end of
    /// the structure read as zero; `offset + data.len()` may be anything.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes device configuration space. Read-only devices keep this default, which ignores the write.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver has set DRIVER_OK: hands over the queues, returns what will serve them.
    /// May be called again after a reset has dropped the former handler.
    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError>;
}

/// What a device gets when its driver sets DRIVER_OK (virtio 1.2 §3.1.1).
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestRam,
    /// The feature bits both sides agreed on.
    pub features: u64,
    /// Every queue of the profile, in order; a queue that the driver did not enable is present with
    /// [`Virtqueue::is_enabled`] false.
    pub queues: Vec<Virtqueue>,
    /// Signals configuration changes and NEEDS_RESET.
    pub interrupt: Arc<dyn Interrupt>,
}

/// Why a device could not start serving. The transport answers it with DEVICE_NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left a queue disabled that this device can't do without.
    #[error("queue {0} is not enabled")]
    QueueMissing(usize),
    /// Something on the host that activation needs failed.
    #[error("{what}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// How a device interrupts its driver (virtio 1.2 §2.9, §4.2.2 InterruptStatus). Cheap to call, never blocks.
pub trait Interrupt: Send + Sync {
    /// "Used buffer notification" of the queue with this index.
    fn signal_queue(&self, index: u16);
    /// "Configuration change notification"; the transport bumps ConfigGeneration.
    fn signal_config(&self);
    /// Sets DEVICE_NEEDS_RESET (virtio 1.2 §2.1.2) and notifies: the rings can't be trusted any more.
    fn needs_reset(&self);
    /// Takes one from the device's small stock of warnings, which lasts for the life of the VM: a driver can break its
    /// rings and reset the device as often as it likes, and must not fill the host's log.
    fn may_warn(&self) -> bool;
}

/// A device at work: owned and called by one worker thread, dropped at reset.
pub trait Handler: Send {
    /// File descriptors beside the queues' kicks that wake this handler while readable, with a token each.
    /// Called once after activation, and again whenever `serve` returned [`Served::SourcesChanged`].
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Something happened. Drains all there is to do for `event` before it returns and never blocks on
    /// the guest.
    fn serve(&mut self, event: Event) -> Served;
}

/// One extra reason to wake up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The file descriptor; the handler keeps it open for as long as it lists it.
    pub fd: RawFd,
    /// Handed back in [`Event::Source`]. Never used again for another descriptor: the kernel hands out the
    /// number of a closed one at once, and only the token tells the two apart.
    pub token: u64,
    /// Wake when readable.
    pub read: bool,
    /// Wake when writable.
    pub write: bool,
}

/// Why a handler was woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The driver kicked this queue.
    Queue(u16),
    /// A source of this token is ready. Error and hang-up set both flags.
    Source {
        /// The token of [`Source`].
        token: u64,
        /// Readable, in error, or hung up.
        readable: bool,
        /// Writable, in error, or hung up.
        writable: bool,
    },
}

/// What the worker should do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// Nothing special.
    Done,
    /// Ask for `sources` again: the set of descriptors or their interest changed.
    SourcesChanged,
    /// The rings are broken; stop serving until the driver resets the device.
    Broken,
}

/// Answers a configuration space read from the structure's bytes: what lies beyond them is zero.
pub fn read_bytes(structure: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(structure.len());
    for (to, byte) in data.iter_mut().zip(&structure[from..]) {
        *to = *byte;
    }
}
