//! The virtio-mmio register block, version 2 (virtio 1.2 §4.2.2): registers in, activation and reset out.

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::signal::Signal;
use super::status::{NEEDS_RESET, Status, Transition};
use crate::device::{Activation, GuestRam, Interrupt, Profile, VirtioDevice};
use crate::queue::Virtqueue;
use crate::ram::Ram;
use crate::worker::{Attachment, WorkerHandle};

/// Bytes of guest-physical address space that one device occupies.
pub const MMIO_REGION_SIZE: u64 = 0x1000;
/// Offset of QueueNotify: the board registers [`MmioTransport::queue_kicks`] as ioeventfds here, each with
/// its queue's index as a 32-bit datamatch.
pub const QUEUE_NOTIFY: u64 = reg::QUEUE_NOTIFY;

/// Register offsets, named as in the specification's table 4.1.
mod reg {
    pub const MAGIC_VALUE: u64 = 0x000;
    pub const VERSION: u64 = 0x004;
    pub const DEVICE_ID: u64 = 0x008;
    pub const VENDOR_ID: u64 = 0x00c;
    pub const DEVICE_FEATURES: u64 = 0x010;
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    pub const DRIVER_FEATURES: u64 = 0x020;
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    pub const QUEUE_SEL: u64 = 0x030;
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    pub const QUEUE_NUM: u64 = 0x038;
    pub const QUEUE_READY: u64 = 0x044;
    pub const QUEUE_NOTIFY: u64 = 0x050;
    pub const INTERRUPT_STATUS: u64 = 0x060;
    pub const INTERRUPT_ACK: u64 = 0x064;
    pub const STATUS: u64 = 0x070;
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    pub const SHM_SEL: u64 = 0x0ac;
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    pub const SHM_LEN_HIGH: u64 = 0x0b4;
    pub const SHM_BASE_LOW: u64 = 0x0b8;
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    pub const CONFIG: u64 = 0x100;
}

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// "vmbx", little-endian.
const VENDOR: u32 = 0x7862_6d76;

/// Features that the transport offers for every device.
const TRANSPORT_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// One queue as the driver has described it so far; nothing is checked before activation.
#[derive(Debug, Clone, Copy)]
struct QueueSetup {
    max_size: u16,
    size: u32,
    ready: bool,
    descriptors: u64,
    driver_area: u64,
    device_area: u64,
}

impl QueueSetup {
    fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: u32::from(max_size),
            ready: false,
            descriptors: 0,
            driver_area: 0,
            device_area: 0,
        }
    }

    /// Builds the queue (§2.7): a power of two no larger than its maximum, aligned, wholly in RAM.
    fn build(&self, memory: &Ram, event_idx: bool) -> Result<Queue, virtio_queue::Error> {
        let mut queue = Queue::new(self.max_size)?;
        if !self.ready {
            return Ok(queue);
        }
        let size = u16::try_from(self.size).map_err(|_| virtio_queue::Error::InvalidSize)?;
        queue.try_set_size(size)?;
        let in_ram = |address: u64, length: u64| {
            let address = GuestAddress(address);
            usize::try_from(length)
                .ok()
                .filter(|length| memory.check_range(address, *length))
                .map(|_| address)
                .ok_or(virtio_queue::Error::AddressOverflow)
        };
        let size = u64::from(size);
        queue.try_set_desc_table_address(in_ram(self.descriptors, 16 * size)?)?;
        queue.try_set_avail_ring_address(in_ram(self.driver_area, 6 + 2 * size)?)?;
        queue.try_set_used_ring_address(in_ram(self.device_area, 6 + 8 * size)?)?;
        if queue.avail_ring() == 0 {
            // virtio-queue takes this address for "was reset".
            return Err(virtio_queue::Error::QueueNotReady);
        }
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// One virtio device behind its registers. Every method is called by vCPU threads, one at a time (the board
/// keeps it behind a lock); none blocks but a reset, which waits for the worker to let go of the handler.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    profile: Profile,
    memory: GuestRam,
    worker: WorkerHandle,
    signal: Arc<Signal>,
    kicks: Vec<EventFd>,
    queues: Vec<QueueSetup>,
    status: Status,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    shm_sel: u32,
    attachment: Option<Attachment>,
}

impl MmioTransport {
    /// Puts `device` behind registers. `irq` is written once per interrupt; its handler will run on `worker`.
    ///
    /// # Errors
    /// No event descriptor could be made for a queue, or the device's profile names an impossible queue size.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestRam,
        irq: EventFd,
        worker: WorkerHandle,
    ) -> io::Result<Self> {
        let profile = device.profile();
        for size in &profile.queue_sizes {
            Queue::new(*size).map_err(|e| io::Error::other(format!("{}: {e}", profile.name)))?;
        }
        let kicks = profile
            .queue_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        let queues = profile
            .queue_sizes
            .iter()
            .map(|max| QueueSetup::new(*max))
            .collect();
        Ok(Self {
            device,
            profile,
            memory,
            worker,
            signal: Arc::new(Signal::new(irq)),
            kicks,
            queues,
            status: Status::default(),
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            shm_sel: 0,
            attachment: None,
        })
    }

    /// What the device is.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// One event descriptor per queue, in order; writing to it is the same as the driver's QueueNotify.
    pub fn queue_kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// Tells the driver that the configuration space has changed (§2.5, §4.2.2 ConfigGeneration).
    pub fn config_changed(&self) {
        self.signal.signal_config();
    }

    /// The device's interrupt, for a handle that changes its configuration from another thread.
    pub fn interrupt(&self) -> Arc<dyn Interrupt> {
        self.signal.clone()
    }

    /// A load of `data.len()` bytes at `offset` into the region. What is not a register reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.read_config(offset, data);
            return;
        }
        // §4.2.2.2: the driver uses only 32-bit aligned accesses here.
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    /// A store of `data` at `offset` into the region. What is not a register ignores it.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::CONFIG) {
            self.device.write_config(offset, data);
            return;
        }
        if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            reg::MAGIC_VALUE => MAGIC,
            reg::VERSION => 2,
            reg::DEVICE_ID => self.profile.device_id,
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            reg::QUEUE_NUM_MAX => self.queue().map_or(0, |q| u32::from(q.max_size)),
            reg::QUEUE_READY => self.queue().map_or(0, |q| u32::from(q.ready)),
            reg::INTERRUPT_STATUS => self.signal.pending(),
            reg::STATUS => u32::from(self.status_bits()),
            // §4.2.2: an absent region reads as all-ones, length and base.
            reg::SHM_LEN_LOW => half(self.shared_memory().1, 0),
            reg::SHM_LEN_HIGH => half(self.shared_memory().1, 1),
            reg::SHM_BASE_LOW => half(self.shared_memory().0, 0),
            reg::SHM_BASE_HIGH => half(self.shared_memory().0, 1),
            reg::CONFIG_GENERATION => self.signal.generation(),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        match offset {
            reg::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            reg::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            reg::DRIVER_FEATURES => self.choose_features(value),
            reg::QUEUE_SEL => self.queue_sel = value,
            reg::QUEUE_NOTIFY => self.kick(value),
            reg::INTERRUPT_ACK => self.signal.acknowledge(value),
            reg::STATUS => self.write_status(value),
            reg::SHM_SEL => self.shm_sel = value,
            _ => self.write_queue_register(offset, value),
        }
    }

    fn write_queue_register(&mut self, offset: u64, value: u32) {
        if !self.status.may_set_up_queues() {
            return;
        }
        let selected = self.queue_sel as usize;
        let Some(queue) = self.queues.get_mut(selected) else {
            return;
        };
        match offset {
            reg::QUEUE_READY => queue.ready = value & 1 == 1,
            // §4.2.2.2: the driver sets a queue up while it is not ready.
            _ if queue.ready => {}
            reg::QUEUE_NUM => queue.size = value,
            reg::QUEUE_DESC_LOW => set_half(&mut queue.descriptors, 0, value),
            reg::QUEUE_DESC_HIGH => set_half(&mut queue.descriptors, 1, value),
            reg::QUEUE_DRIVER_LOW => set_half(&mut queue.driver_area, 0, value),
            reg::QUEUE_DRIVER_HIGH => set_half(&mut queue.driver_area, 1, value),
            reg::QUEUE_DEVICE_LOW => set_half(&mut queue.device_area, 0, value),
            reg::QUEUE_DEVICE_HIGH => set_half(&mut queue.device_area, 1, value),
            _ => {}
        }
    }

    fn offered(&self) -> u64 {
        self.profile.features | TRANSPORT_FEATURES
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(self.queue_sel as usize)
    }

    /// Base and length of the selected shared memory region.
    fn shared_memory(&self) -> (u64, u64) {
        self.profile
            .shared_memory
            .iter()
            .find(|region| u32::from(region.id) == self.shm_sel)
            .map_or((u64::MAX, u64::MAX), |region| (region.base, region.length))
    }

    fn status_bits(&self) -> u8 {
        let device_bits = if self.signal.is_reset_needed() {
            NEEDS_RESET
        } else {
            0
        };
        self.status.bits() | device_bits
    }

    fn choose_features(&mut self, value: u32) {
        if self.status.may_negotiate() {
            set_half(&mut self.driver_features, self.driver_features_sel, value);
        }
    }

    fn kick(&self, index: u32) {
        let Some(kick) = self.kicks.get(index as usize) else {
            return;
        };
        match kick.write(1) {
            Ok(()) => {}
            // The counter is full, so the worker will wake anyway.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => tracing::error!(device = self.profile.name, error = %e, "can't kick a queue"),
        }
    }

    fn write_status(&mut self, value: u32) {
        match self.status.write(value) {
            Transition::Reset => self.reset(),
            Transition::Set(next) => self.status = next,
            Transition::CheckFeatures(next) => {
                if self.features_acceptable() {
                    self.status = next;
                }
            }
            Transition::Activate(next) => {
                self.status = next;
                self.signal.go_live();
                if let Err(reason) = self.activate() {
                    if self.signal.may_warn() {
                        tracing::warn!(
                            device = self.profile.name,
                            reason,
                            "the driver's set-up can't be used"
                        );
                    }
                    self.signal.needs_reset();
                }
            }
            Transition::Refused => {}
        }
    }

    /// §3.1.1 step 5, §6.1: a subset of what was offered, and VERSION_1 among them.
    fn features_acceptable(&self) -> bool {
        self.driver_features & !self.offered() == 0
            && self.driver_features & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) -> Result<(), String> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = Vec::with_capacity(self.queues.len());
        let mut kicks = Vec::with_capacity(self.queues.len());
        for (index, (setup, kick)) in (0u16..).zip(self.queues.iter().zip(&self.kicks)) {
            let queue = setup
                .build(&self.memory, event_idx)
                .map_err(|e| format!("queue {index}: {e}"))?;
            let mut queue = Virtqueue::new(index, queue, self.memory.clone(), self.signal.clone());
            if setup.ready {
                let kick = Arc::new(kick.try_clone().map_err(|e| e.to_string())?);
                queue.kick_with(kick.clone());
                kicks.push((index, kick));
            }
            queues.push(queue);
        }
        let handler = self
            .device
            .activate(Activation {
                memory: self.memory.clone(),
                features: self.driver_features,
                queues,
                interrupt: self.signal.clone(),
            })
            .map_err(|e| e.to_string())?;
        self.attachment = Some(self.worker.attach(handler, kicks, self.signal.clone()));
        Ok(())
    }

    /// Back to the state after power-on (§2.4). When it returns the handler is gone, and with it every
    /// reference to the driver's rings.
    fn reset(&mut self) {
        self.attachment = None;
        self.signal.reset();
        self.status = Status::default();
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.shm_sel = 0;
        for queue in &mut self.queues {
            *queue = QueueSetup::new(queue.max_size);
        }
        for kick in &self.kicks {
            // Empties the counter; WouldBlock says that it was empty.
            let _ = kick.read();
        }
    }
}

/// The low (0) or high (1) half of a 64-bit value; what lies beyond is zero.
fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => (value & 0xffff_ffff) as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, new: u32) {
    match select {
        0 => *value = (*value & !0xffff_ffff) | u64::from(new),
        1 => *value = (*value & 0xffff_ffff) | u64::from(new) << 32,
        _ => {}
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
