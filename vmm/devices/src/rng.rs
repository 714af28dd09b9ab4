//! The entropy device (virtio 1.2 §5.4): random bytes from the host's kernel straight into guest memory.
//!
//! The smallest complete device: start here to write another.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::{GuestMemory, ReadVolatile};

use crate::device::{ActivateError, Activation, Event, Handler, Profile, Served, VirtioDevice};
use crate::queue::{Chain, Virtqueue};

const DEVICE_ID: u32 = 4;
/// The only queue, `requestq` (§5.4.2).
const REQUEST_QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 64;
/// Bytes given for one request. Drivers ask again for more; a guest that offers gigabytes must not keep us busy.
const MAX_REQUEST_BYTES: usize = 4096;

/// The device before activation. It has no features and no configuration space (§5.4.3, §5.4.4).
#[derive(Debug)]
pub struct Rng {
    source: Arc<File>,
}

impl Rng {
    /// Opens the host's random source: `/dev/random`, which since Linux 5.6 never blocks once it is seeded.
    /// (getrandom(2) into guest memory would need unsafe code; a read by vm-memory does not.)
    ///
    /// # Errors
    /// It can't be opened.
    pub fn new() -> io::Result<Self> {
        Ok(Self::from_source(File::open("/dev/random")?))
    }

    /// Takes the bytes from an open file, for a jail without `/dev`.
    pub fn from_source(source: File) -> Self {
        Self {
            source: Arc::new(source),
        }
    }
}

impl VirtioDevice for Rng {
    fn profile(&self) -> Profile {
        Profile {
            device_id: DEVICE_ID,
            name: "rng",
            features: 0,
            queue_sizes: vec![QUEUE_SIZE],
            shared_memory: Vec::new(),
        }
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queue = activation
            .queues
            .into_iter()
            .nth(REQUEST_QUEUE)
            .filter(Virtqueue::is_enabled)
            .ok_or(ActivateError::QueueMissing(REQUEST_QUEUE))?;
        Ok(Box::new(RngHandler {
            queue,
            source: self.source.clone(),
        }))
    }
}

struct RngHandler {
    queue: Virtqueue,
    source: Arc<File>,
}

impl Handler for RngHandler {
    fn serve(&mut self, _event: Event) -> Served {
        self.queue.serve("rng", |chain| fill(&chain, &self.source))
    }
}

/// Fills the device-writable buffers of a chain (§5.4.6.2), returns how many bytes. Readable buffers are
/// skipped; a buffer outside of RAM ends the request with what was written before it.
fn fill(chain: &Chain, mut source: &File) -> u32 {
    let mut written = 0;
    for descriptor in chain.clone().writable() {
        let wanted = (MAX_REQUEST_BYTES - written).min(descriptor.len() as usize);
        for slice in chain.memory().get_slices(descriptor.addr(), wanted) {
            let Ok(mut slice) = slice else {
                return written as u32;
            };
            if let Err(e) = source.read_exact_volatile(&mut slice) {
                tracing::error!(error = %e, "can't read the host's random source");
                return written as u32;
            }
            written += slice.len();
        }
        if written == MAX_REQUEST_BYTES {
            break;
        }
    }
    written as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::testing::{
        Buffer, DriverQueue, FakeInterrupt, INDIRECT, NEXT, WRITE, activation, ram,
    };

    /// A device whose "random" bytes count up, its driver, and its interrupt.
    fn device() -> (Box<dyn Handler>, DriverQueue, Arc<FakeInterrupt>) {
        let mut source = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..=250u8).cycle().take(1 << 20).collect();
        source.write_all(&bytes).unwrap();
        std::io::Seek::rewind(&mut source).unwrap();
        let interrupt = Arc::new(FakeInterrupt::default());
        let driver = DriverQueue::new(&ram(2), 0, 16);
        let activation = activation(&[&driver], 0, interrupt.clone());
        let handler = Rng::from_source(source).activate(activation).unwrap();
        (handler, driver, interrupt)
    }

    #[test]
    fn a_request_is_filled_and_interrupts_once() {
        let (mut handler, mut driver, interrupt) = device();
        let (one, two) = (driver.writable(5), driver.writable(3));
        driver.add(&[one, two]);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(driver.used(), Some((0, 8)));
        assert_eq!(
            [driver.bytes(one), driver.bytes(two)].concat(),
            [0, 1, 2, 3, 4, 5, 6, 7]
        );
        assert_eq!(interrupt.take_queues(), [0]);
    }

    #[test]
    fn the_hosts_own_source_gives_different_bytes_each_time() {
        let driver_memory = ram(2);
        let mut driver = DriverQueue::new(&driver_memory, 0, 16);
        let interrupt = Arc::new(FakeInterrupt::default());
        let activation = activation(&[&driver], 0, interrupt);
        let mut handler = Rng::new().unwrap().activate(activation).unwrap();
        let (one, two) = (driver.writable(32), driver.writable(32));
        driver.add(&[one]);
        driver.add(&[two]);
        handler.serve(Event::Queue(0));
        assert_ne!(driver.bytes(one), driver.bytes(two));
    }

    #[test]
    fn a_huge_request_gets_a_bounded_answer() {
        let (mut handler, mut driver, _) = device();
        let buffer = driver.writable(100_000);
        driver.add(&[buffer]);
        handler.serve(Event::Queue(0));
        assert_eq!(driver.used(), Some((0, 4096)));
        assert!(driver.bytes(buffer)[4096..].iter().all(|b| *b == 0xaa));
    }

    #[test]
    fn read_only_and_empty_buffers_are_left_alone() {
        let (mut handler, mut driver, _) = device();
        let (secret, empty) = (driver.readable(b"secret"), driver.writable(0));
        driver.add(&[secret, empty]);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(driver.used(), Some((0, 0)));
        assert_eq!(driver.bytes(secret), b"secret");
    }

    #[test]
    fn a_buffer_outside_of_ram_ends_the_request() {
        let (mut handler, mut driver, _) = device();
        let good = driver.writable(4);
        let bad = Buffer {
            address: u64::MAX - 1,
            length: 64,
            flags: WRITE,
        };
        driver.add(&[good, bad]);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(driver.used(), Some((0, 4)));
    }

    #[test]
    fn a_descriptor_loop_ends() {
        let (mut handler, mut driver, _) = device();
        let buffer = driver.writable(1);
        driver.set_descriptor(0, buffer, NEXT, 0);
        driver.publish(0);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(driver.used(), Some((0, 16)));
    }

    #[test]
    fn an_indirect_table_outside_of_ram_gives_nothing() {
        let (mut handler, mut driver, _) = device();
        let table = Buffer {
            address: 1 << 40,
            length: 32,
            flags: INDIRECT,
        };
        driver.add(&[table]);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(driver.used(), Some((0, 0)));
    }

    #[test]
    fn a_head_beyond_the_ring_breaks_the_device() {
        let (mut handler, mut driver, _) = device();
        driver.publish(16);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Broken);
    }

    #[test]
    fn an_available_index_that_is_too_far_ahead_breaks_the_device() {
        let (mut handler, mut driver, _) = device();
        driver.set_available_index(17);
        assert_eq!(handler.serve(Event::Queue(0)), Served::Broken);
    }
}
