//! The balloon device (virtio 1.2 §5.5): memory that the guest lends back, by order (inflate) or by itself (free
//! page reporting).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, io};

use vm_memory::{Bytes, GuestAddress, GuestMemory};

use crate::device::{
    ActivateError, Activation, Event, Handler, Interrupt, Profile, Served, VirtioDevice, read_bytes,
};
use crate::queue::{Chain, Virtqueue};
use crate::ram::Ram;

const DEVICE_ID: u32 = 5;
/// §5.5.3; virtio-bindings has none of them.
const VIRTIO_BALLOON_F_DEFLATE_ON_OOM: u32 = 2;
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;
const INFLATE_QUEUE: usize = 0;
const DEFLATE_QUEUE: usize = 1;
/// Fifth in §5.5.2, but a queue whose feature is not offered has no number, and neither statsq nor
/// free_page_vq is offered. Linux and QEMU count the same way.
const REPORTING_QUEUE: usize = 2;
const QUEUE_SIZE: u16 = 128;

/// The unit of the device (§5.5.6), whatever the page size of guest or host.
const PAGE_BYTES: u64 = 4096;
const PAGES_PER_MIB: u32 = 256;
/// Page numbers taken from one chain; Linux sends 256. The rest of a longer chain is not looked at.
/// Each page may be a system call of its own.
const PAGES_MAX: usize = 1024;
/// Free ranges taken from one chain; Linux sends 32.
const RANGES_MAX: usize = 512;
/// Page numbers read from guest memory at once.
const BATCH: usize = 256;

/// Gives guest memory back to the host. The monitor implements it, because it takes unsafe code
/// (`madvise(MADV_DONTNEED)` or a hole in the memory file).
pub trait Reclaim: Send + Sync {
    /// The guest doesn't need the content of these bytes of RAM any more; reading them later gives zeroes or
    /// the old content. `address` and `length` are multiples of 4096 and the range is wholly inside of RAM.
    /// Called on the worker thread.
    ///
    /// # Errors
    /// The host refused; the memory stays as it is.
    fn reclaim(&self, address: GuestAddress, length: u64) -> io::Result<()>;
}

/// `struct virtio_balloon_config` (§5.5.4) and who is to hear of its changes.
#[derive(Default)]
struct Shared {
    target_pages: AtomicU32,
    actual_pages: AtomicU32,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
}

impl Shared {
    fn set_interrupt(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        *self
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

/// The monitor's hand on the balloon. Clones are the same balloon.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Shared>);

impl BalloonHandle {
    /// Asks the guest to lend this many MiB. It does so in its own time, or never: see
    /// [`BalloonHandle::actual_mib`].
    pub fn set_target_mib(&self, mib: u32) {
        let pages = mib.saturating_mul(PAGES_PER_MIB);
        self.0.target_pages.store(pages, Ordering::SeqCst);
        let interrupt = self
            .0
            .interrupt
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(interrupt) = interrupt.as_ref() {
            interrupt.signal_config();
        }
    }

    /// What the guest says that it lends, in whole MiB. The guest's word: for people, not for decisions.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual_pages.load(Ordering::SeqCst) / PAGES_PER_MIB
    }
}

impl fmt::Debug for BalloonHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BalloonHandle")
            .field("target_pages", &self.0.target_pages)
            .field("actual_pages", &self.0.actual_pages)
            .finish()
    }
}

/// The device before activation.
pub struct Balloon {
    shared: Arc<Shared>,
    reclaim: Arc<dyn Reclaim>,
}

impl Balloon {
    /// An empty balloon that wants to stay empty.
    pub fn new(reclaim: Arc<dyn Reclaim>) -> Self {
        Self {
            shared: Arc::default(),
            reclaim,
        }
    }

    /// To be taken before the device is handed to its transport.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(self.shared.clone())
    }
}

impl VirtioDevice for Balloon {
    fn profile(&self) -> Profile {
        Profile {
            device_id: DEVICE_ID,
            name: "balloon",
            features: 1 << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1 << VIRTIO_BALLOON_F_REPORTING,
            queue_sizes: vec![QUEUE_SIZE; 3],
            shared_memory: Vec::new(),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.shared.target_pages.load(Ordering::SeqCst);
        let actual = self.shared.actual_pages.load(Ordering::SeqCst);
        let config = u64::from(actual) << 32 | u64::from(target);
        read_bytes(&config.to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // §5.5.4: `actual`, at offset 4, is the only field that the driver writes.
        if let (4, Ok(actual)) = (offset, <[u8; 4]>::try_from(data)) {
            let pages = u32::from_le_bytes(actual);
            self.shared.actual_pages.store(pages, Ordering::SeqCst);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queues = activation.queues;
        for needed in [INFLATE_QUEUE, DEFLATE_QUEUE] {
            if !queues.get(needed).is_some_and(Virtqueue::is_enabled) {
                return Err(ActivateError::QueueMissing(needed));
            }
        }
        // What was lent before a reset is the guest's again.
        self.shared.actual_pages.store(0, Ordering::SeqCst);
        self.shared.set_interrupt(Some(activation.interrupt));
        Ok(Box::new(BalloonHandler {
            queues,
            shared: self.shared.clone(),
            reclaim: self.reclaim.clone(),
        }))
    }
}

struct BalloonHandler {
    queues: Vec<Virtqueue>,
    shared: Arc<Shared>,
    reclaim: Arc<dyn Reclaim>,
}

impl Handler for BalloonHandler {
    fn serve(&mut self, event: Event) -> Served {
        let Event::Queue(index) = event else {
            return Served::Done;
        };
        let index = usize::from(index);
        let Some(queue) = self.queues.get_mut(index).filter(|q| q.is_enabled()) else {
            return Served::Done;
        };
        let reclaim = self.reclaim.as_ref();
        queue.serve("balloon", |chain| {
            match index {
                INFLATE_QUEUE => inflate(&chain, reclaim),
                REPORTING_QUEUE => take_reported(&chain, reclaim),
                // Deflate: the guest simply touches its pages again, and the host gives it new ones.
                _ => {}
            }
            0
        })
    }
}

impl Drop for BalloonHandler {
    fn drop(&mut self) {
        self.shared.set_interrupt(None);
    }
}

/// Takes the pages whose numbers are in the chain (§5.5.6).
fn inflate(chain: &Chain, reclaim: &dyn Reclaim) {
    let memory = chain.memory();
    let mut run = Run::default();
    let mut left = PAGES_MAX;
    for descriptor in chain.clone().readable() {
        let mut at = descriptor.addr();
        let mut pages = left.min(descriptor.len() as usize / 4);
        left -= pages;
        while pages > 0 {
            let mut numbers = [0u8; 4 * BATCH];
            let count = pages.min(BATCH);
            let bytes = &mut numbers[..4 * count];
            if memory.read_slice(bytes, at).is_err() {
                break;
            }
            for number in bytes.chunks_exact(4) {
                let number = number.try_into().map_or(0, u32::from_le_bytes);
                run.add(u64::from(number), memory, reclaim);
            }
            pages -= count;
            // It was read, so its end is no further than the end of RAM.
            at = GuestAddress(at.0.wrapping_add(4 * count as u64));
        }
    }
    run.finish(memory, reclaim);
}

/// Neighbouring pages, up or down, given back by one call instead of one each.
#[derive(Default)]
struct Run {
    first: u64,
    pages: u64,
}

impl Run {
    fn add(&mut self, page: u64, memory: &Ram, reclaim: &dyn Reclaim) {
        if self.pages > 0 && page == self.first + self.pages {
            self.pages += 1;
        } else if self.pages > 0 && page + 1 == self.first {
            self.first = page;
            self.pages += 1;
        } else {
            self.finish(memory, reclaim);
            *self = Self {
                first: page,
                pages: 1,
            };
        }
    }

    fn finish(&mut self, memory: &Ram, reclaim: &dyn Reclaim) {
        // Page numbers have 32 bits, so neither product overflows.
        give_back(
            memory,
            self.first * PAGE_BYTES,
            self.pages * PAGE_BYTES,
            reclaim,
        );
        self.pages = 0;
    }
}

/// Takes the free ranges that the device-writable buffers of the chain name (§5.5.6.7).
fn take_reported(chain: &Chain, reclaim: &dyn Reclaim) {
    for range in chain.clone().writable().take(RANGES_MAX) {
        let from = range.addr().0;
        let Some(end) = from.checked_add(u64::from(range.len())) else {
            continue;
        };
        // Only whole pages inside of the range.
        let Some(from) = from.checked_next_multiple_of(PAGE_BYTES) else {
            continue;
        };
        let end = end - end % PAGE_BYTES;
        give_back(chain.memory(), from, end.saturating_sub(from), reclaim);
    }
}

fn give_back(memory: &Ram, address: u64, length: u64, reclaim: &dyn Reclaim) {
    let address = GuestAddress(address);
    let in_ram = usize::try_from(length).is_ok_and(|length| memory.check_range(address, length));
    if length == 0 || !in_ram {
        return;
    }
    if let Err(e) = reclaim.reclaim(address, length) {
        tracing::debug!(error = %e, address = address.0, length, "can't give memory back");
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
