//! What a device's tests and fuzz targets need: RAM, an interrupt that remembers, and the driver's side of a ring.
//!
//! A test builds [`ram`], a [`DriverQueue`] and its [`DriverQueue::virtqueue`], adds chains of [`Buffer`]s, lets
//! the device serve, and looks at [`DriverQueue::used`] and [`DriverQueue::bytes`].

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, VolatileSlice};

use crate::device::{Activation, GuestRam, Interrupt};
use crate::net::{Offloads, Port};
use crate::queue::Virtqueue;
use crate::ram::{Ram, RamRegion};

/// The next descriptor follows.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device may write.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// Where the rings of queue 0 are; each further queue's follow after [`RING_STRIDE`] bytes.
pub const RINGS: u64 = 0x1_0000;
/// Bytes between the rings of two queues; enough for 1024 descriptors.
pub const RING_STRIDE: u64 = 0x1_0000;
/// Bytes of buffer space per queue. Queue `n`'s is at `(n + 1) * ARENA`.
pub const ARENA: u64 = 1 << 20;

/// Guest RAM of so many MiB at address 0. Two MiB are needed for one queue, and one more for each further.
pub fn ram(mib: usize) -> GuestRam {
    let mapping = GuestRegionMmap::from_range(GuestAddress(0), mib << 20, None);
    let mapping = mapping.expect("anonymous memory can be mapped");
    Arc::new(Ram::new(vec![RamRegion::shown(mapping)]))
}

/// What `device.activate` gets from a driver that has set up all of `queues` and accepted `features`.
pub fn activation(
    queues: &[&DriverQueue],
    features: u64,
    interrupt: Arc<FakeInterrupt>,
) -> Activation {
    let memory = queues.first().expect("a device has a queue").memory.clone();
    let queues = queues
        .iter()
        .map(|q| q.virtqueue(interrupt.clone()))
        .collect();
    Activation {
        memory,
        features,
        queues,
        interrupt,
    }
}

/// An interrupt that only counts.
#[derive(Debug, Default)]
pub struct FakeInterrupt {
    queues: Mutex<Vec<u16>>,
    configs: AtomicU32,
    needs_reset: AtomicBool,
}

impl FakeInterrupt {
    /// The queues signalled since the last call, in order.
    pub fn take_queues(&self) -> Vec<u16> {
        std::mem::take(
            &mut *self
                .queues
                .lock()
                .expect("no test panics while it holds this"),
        )
    }

    /// How often a configuration change was signalled.
    pub fn configs(&self) -> u32 {
        self.configs.load(Ordering::SeqCst)
    }

    /// Whether the device asked for a reset.
    pub fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }
}

impl Interrupt for FakeInterrupt {
    fn signal_queue(&self, index: u16) {
        self.queues
            .lock()
            .expect("no test panics while it holds this")
            .push(index);
    }

    fn signal_config(&self) {
        self.configs.fetch_add(1, Ordering::SeqCst);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }

    fn may_warn(&self) -> bool {
        true
    }
}

/// A port whose wire is a socket: a frame is a datagram.
#[derive(Debug)]
pub struct FakePort {
    socket: UnixDatagram,
    offloads: Mutex<Option<Offloads>>,
    /// It has come to its end.
    pub ended: AtomicBool,
}

impl FakePort {
    /// A port, and the other end of its wire; neither blocks.
    pub fn pair() -> io::Result<(Arc<Self>, UnixDatagram)> {
        let (socket, wire) = UnixDatagram::pair()?;
        socket.set_nonblocking(true)?;
        wire.set_nonblocking(true)?;
        let port = Self {
            socket,
            offloads: Mutex::default(),
            ended: AtomicBool::new(false),
        };
        Ok((Arc::new(port), wire))
    }

    /// What [`Port::set_offloads`] was last told.
    pub fn offloads(&self) -> Option<Offloads> {
        *self
            .offloads
            .lock()
            .expect("no test panics while it holds this")
    }

    fn check(&self) -> io::Result<()> {
        match self.ended.load(Ordering::SeqCst) {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }
}

impl Port for FakePort {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.check()?;
        *self
            .offloads
            .lock()
            .expect("no test panics while it holds this") = Some(offloads);
        Ok(())
    }

    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check()?;
        let mut frame = Vec::new();
        for piece in pieces {
            let mut bytes = vec![0; piece.len()];
            piece.copy_to(&mut bytes[..]);
            frame.extend(bytes);
        }
        self.socket.send(&frame).map(drop)
    }

    fn receive(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.check()?;
        let mut frame = vec![0; 1 << 18];
        let length = self.socket.recv(&mut frame)?;
        let mut rest = &frame[..length];
        for piece in pieces {
            let (now, later) = rest.split_at(rest.len().min(piece.len()));
            piece.copy_from(now);
            rest = later;
        }
        Ok(length - rest.len())
    }
}

/// One buffer of a chain, in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// [`WRITE`], [`INDIRECT`] or 0; `add` sets [`NEXT`].
    pub flags: u16,
}

/// The driver's side of one split virtqueue (virtio 1.2 §2.7). Descriptors are handed out round robin and never
/// checked for reuse: a test that has more in flight than the ring is long breaks its own chains.
pub struct DriverQueue {
    memory: GuestRam,
    index: u16,
    size: u16,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
    arena_used: u64,
}

impl DriverQueue {
    /// An empty queue number `index` of `size` descriptors (a power of two up to 1024).
    pub fn new(memory: &GuestRam, index: u16, size: u16) -> Self {
        Self {
            memory: memory.clone(),
            index,
            size,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
            arena_used: 0,
        }
    }

    /// The device's side of this queue, without EVENT_IDX.
    pub fn virtqueue(&self, interrupt: Arc<dyn Interrupt>) -> Virtqueue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue.set_desc_table_address(Some(self.descriptors() as u32), Some(0));
        queue.set_avail_ring_address(Some(self.available_ring() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_ring() as u32), Some(0));
        queue.set_ready(true);
        Virtqueue::new(self.index, queue, self.memory.clone(), interrupt)
    }

    /// Address of the descriptor table.
    pub fn descriptors(&self) -> u64 {
        RINGS + u64::from(self.index) * RING_STRIDE
    }

    /// Address of the available ring.
    pub fn available_ring(&self) -> u64 {
        self.descriptors() + 16 * u64::from(self.size)
    }

    /// Address of the used ring.
    pub fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// A buffer that the device may read, filled with `bytes`.
    pub fn readable(&mut self, bytes: &[u8]) -> Buffer {
        let buffer = self.allocate(bytes.len(), 0);
        self.memory
            .write_slice(bytes, GuestAddress(buffer.address))
            .expect("the arena is in RAM");
        buffer
    }

    /// A buffer that the device may write, filled with 0xaa.
    pub fn writable(&mut self, length: usize) -> Buffer {
        let buffer = self.allocate(length, WRITE);
        self.memory
            .write_slice(&vec![0xaa; length], GuestAddress(buffer.address))
            .expect("the arena is in RAM");
        buffer
    }

    /// What is in a buffer now.
    pub fn bytes(&self, buffer: Buffer) -> Vec<u8> {
        let mut bytes = vec![0; buffer.length as usize];
        self.memory
            .read_slice(&mut bytes, GuestAddress(buffer.address))
            .expect("the buffer is in RAM");
        bytes
    }

    /// Makes a chain of these buffers available; returns its head.
    pub fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.next_descriptor;
        for (position, buffer) in buffers.iter().enumerate() {
            let this = self.next_descriptor;
            let next = (this + 1) % self.size;
            let more = if position + 1 < buffers.len() {
                NEXT
            } else {
                0
            };
            self.set_descriptor(this, *buffer, more, next);
            self.next_descriptor = next;
        }
        self.publish(head);
        head
    }

    /// Writes one descriptor, of any content.
    pub fn set_descriptor(&mut self, index: u16, buffer: Buffer, flags: u16, next: u16) {
        let at = self.descriptors() + 16 * u64::from(index);
        self.store(at, buffer.address);
        self.store(at + 8, buffer.length);
        self.store(at + 12, buffer.flags | flags);
        self.store(at + 14, next);
    }

    /// Makes the chain that starts at `head` available, whatever that is.
    pub fn publish(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.store(self.available_ring() + 4 + 2 * slot, head);
        self.set_available_index(self.next_available.wrapping_add(1));
    }

    /// Sets the available index, whatever it promises.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.store(self.available_ring() + 2, index);
    }

    /// The next chain that the device has given back: its head and how many bytes were written.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let index: u16 = self.load(self.used_ring() + 2);
        if index == self.next_used {
            return None;
        }
        let at = self.used_ring() + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let head: u32 = self.load(at);
        let head = u16::try_from(head).expect("heads are 16 bits wide");
        Some((head, self.load(at + 4)))
    }

    fn allocate(&mut self, length: usize, flags: u16) -> Buffer {
        if self.arena_used + length as u64 > ARENA {
            self.arena_used = 0;
        }
        let address = (u64::from(self.index) + 1) * ARENA + self.arena_used;
        self.arena_used += (length as u64).next_multiple_of(16);
        let length = u32::try_from(length).expect("buffers fit the arena");
        Buffer {
            address,
            length,
            flags,
        }
    }

    fn store<T: vm_memory::ByteValued>(&self, address: u64, value: T) {
        self.memory
            .write_obj(value, GuestAddress(address))
            .expect("the rings are in RAM");
    }

    fn load<T: vm_memory::ByteValued>(&self, address: u64) -> T {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("the rings are in RAM")
    }
}
