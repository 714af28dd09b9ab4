//! What the fuzz targets share: bytes read as operations, and the driver's side of an activated device gone mad.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::device::{Event, GuestRam, Handler, Served, VirtioDevice};
use vmbox_devices::testing::{Buffer, DriverQueue, FakeInterrupt, activation, ram};

/// Size of the guest's RAM: one MiB.
pub const RAM_BYTES: u64 = 1 << 20;
/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 16;
/// Where buffers mostly are; the rings are below.
const BUFFERS: u64 = 0x8_0000;

/// Fuzzer input taken from the front; zeroes when it is used up.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// Whether there is any left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `N` bytes, padded with zeroes.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let (front, rest) = self.0.split_at(self.0.len().min(N));
        bytes[..front.len()].copy_from_slice(front);
        self.0 = rest;
        bytes
    }

    /// A run of bytes whose length comes first.
    pub fn bytes(&mut self) -> Vec<u8> {
        let length = usize::from(self.u8());
        let (front, rest) = self.0.split_at(self.0.len().min(length));
        self.0 = rest;
        front.to_vec()
    }

    /// One byte.
    pub fn u8(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// A guest-physical address: mostly of a buffer, else at the end of RAM, in the rings, or anywhere.
    pub fn address(&mut self) -> u64 {
        match self.u8() % 8 {
            0 => self.u64(),
            1 => RAM_BYTES - u64::from(self.u8()),
            2 => u64::from(self.u32()) % BUFFERS,
            _ => BUFFERS + u64::from(self.u16()),
        }
    }

    /// A buffer with any flags.
    pub fn buffer(&mut self) -> Buffer {
        let address = self.address();
        let length = match self.u8() % 8 {
            0 => self.u32(),
            1 => 0,
            _ => u32::from(self.u16()) % 5000,
        };
        Buffer {
            address,
            length,
            flags: self.u16() & 7,
        }
    }
}

/// An activated device, and a driver that does with it whatever the input says.
pub struct Rig {
    device: Box<dyn VirtioDevice>,
    handler: Option<Box<dyn Handler>>,
    memory: GuestRam,
    queues: Vec<DriverQueue>,
}

impl Rig {
    /// Activates the device with all of its features and all of its queues.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = ram(1);
        let mut rig = Self {
            device,
            handler: None,
            memory,
            queues: Vec::new(),
        };
        rig.reset(u64::MAX);
        rig
    }

    /// Runs until the input is used up. `special` is called for one in eight operations, to build chains that
    /// only a driver of this kind of device would build.
    pub fn run(&mut self, input: &mut Input, mut special: impl FnMut(&mut Input, &GuestRam, &mut DriverQueue)) {
        while !input.is_empty() {
            let operation = input.u8() % 8;
            let index = usize::from(input.u8()) % self.queues.len();
            let queue = &mut self.queues[index];
            match operation {
                0 => {
                    let (at, buffer, next) = (input.u16() % QUEUE_SIZE, input.buffer(), input.u16() % 17);
                    queue.set_descriptor(at, buffer, 0, next);
                }
                1 => queue.publish(input.u16() % (QUEUE_SIZE + 1)),
                2 => {
                    let address = GuestAddress(input.address());
                    // Outside of RAM there is nothing to write to.
                    let _ = self.memory.write_slice(&input.bytes(), address);
                }
                3 => self.kick(index),
                4 => self.config(input),
                5 => match input.u8() {
                    0 => self.reset(input.u64()),
                    1 => queue.set_available_index(input.u16()),
                    2 => self.wake(),
                    _ => self.kick(index),
                },
                6 => {
                    let chain: Vec<Buffer> = (0..input.u8() % 6).map(|_| input.buffer()).collect();
                    queue.add(&chain);
                }
                _ => special(input, &self.memory, queue),
            }
        }
        for index in 0..self.queues.len() {
            self.kick(index);
        }
        self.wake();
    }

    fn kick(&mut self, index: usize) {
        let Some(handler) = self.handler.as_mut() else {
            return;
        };
        if handler.serve(Event::Queue(index as u16)) == Served::Broken {
            self.reset(u64::MAX);
        }
    }

    /// As if all of the handler's own descriptors were ready.
    fn wake(&mut self) {
        let sources = self.handler.as_ref().map(|handler| handler.sources()).unwrap_or_default();
        for source in sources {
            let event = Event::Source { token: source.token, readable: source.read, writable: source.write };
            let served = self.handler.as_mut().map(|handler| handler.serve(event));
            if served == Some(Served::Broken) {
                return self.reset(u64::MAX);
            }
        }
    }

    fn config(&mut self, input: &mut Input) {
        let (offset, bytes) = (input.u64() >> (input.u8() % 64), input.bytes());
        self.device.write_config(offset, &bytes);
        self.device.read_config(offset, &mut bytes.clone());
    }

    fn reset(&mut self, features: u64) {
        self.handler = None;
        let profile = self.device.profile();
        self.queues = (0..profile.queue_sizes.len() as u16)
            .map(|index| DriverQueue::new(&self.memory, index, QUEUE_SIZE))
            .collect();
        for queue in &mut self.queues {
            queue.set_available_index(0);
        }
        let queues: Vec<&DriverQueue> = self.queues.iter().collect();
        let activation = activation(&queues, features & profile.features, Arc::new(FakeInterrupt::default()));
        self.handler = self.device.activate(activation).ok();
    }
}
