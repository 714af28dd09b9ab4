//! The memory device (virtio 1.2 §5.15): memory beside what the guest booted with, which its driver plugs and unplugs block by
//! block until it has as much as the host asks for.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::balloon::Reclaim;
use crate::device::{
    ActivateError, Activation, Event, Handler, Interrupt, Profile, Served, VirtioDevice, read_bytes,
};
use crate::queue::{Chain, Virtqueue};

const DEVICE_ID: u32 = 24;
/// §5.15.3: the driver keeps off what is not plugged.
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;
/// The only queue, `guest-request` (§5.15.2).
const REQUEST_QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 16;

/// The granularity of plugging: Linux takes no less than its page blocks, which have this size.
pub const BLOCK_BYTES: u64 = 2 << 20;
/// What the usable region is a multiple of: the memory block of Linux, which it adds as a whole and plugs in part.
pub const USABLE_BYTES: u64 = 128 << 20;

/// `struct virtio_mem_req` (§5.15.6).
const REQUEST_BYTES: usize = 24;
const REQUEST_PLUG: u16 = 0;
const REQUEST_UNPLUG: u16 = 1;
const REQUEST_UNPLUG_ALL: u16 = 2;
const REQUEST_STATE: u16 = 3;
/// `struct virtio_mem_resp`.
const RESPONSE_BYTES: usize = 10;

/// `type` of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum Verdict {
    Ack = 0,
    Nack = 1,
    Error = 3,
}

/// What a range of blocks is (`VIRTIO_MEM_STATE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

struct State {
    /// One for each block of the region.
    plugged: Vec<bool>,
    plugged_bytes: u64,
    requested_bytes: u64,
    usable_bytes: u64,
}

struct Shared {
    base: u64,
    state: Mutex<State>,
    interrupt: Mutex<Option<Arc<dyn Interrupt>>>,
    /// Told after each change of what is plugged.
    changed: EventFd,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The monitor's hand on the device. Clones are the same device.
#[derive(Clone)]
pub struct MemHandle(Arc<Shared>);

impl MemHandle {
    /// Asks the guest to have this many bytes plugged, rounded up to blocks. Whatever lies below
    /// [`MemHandle::usable_for`] must be RAM by then. It does so in its own time, or never: see [`MemHandle::is_served`].
    pub fn request(&self, bytes: u64) {
        let mut state = lock(&self.0.state);
        state.requested_bytes = bytes
            .next_multiple_of(BLOCK_BYTES)
            .min(region_bytes(&state));
        state.usable_bytes = state.usable_bytes.max(usable_for(&state, bytes));
        drop(state);
        if let Some(interrupt) = lock(&self.0.interrupt).as_ref() {
            interrupt.signal_config();
        }
    }

    /// How much of the region the guest may use once so many bytes are asked for.
    pub fn usable_for(&self, bytes: u64) -> u64 {
        usable_for(&lock(&self.0.state), bytes)
    }

    /// What is plugged, in bytes. The guest decides; it is never more than was asked for at the time.
    pub fn plugged_bytes(&self) -> u64 {
        lock(&self.0.state).plugged_bytes
    }

    /// Whether the guest has at least what was asked for.
    pub fn is_served(&self) -> bool {
        let state = lock(&self.0.state);
        state.plugged_bytes >= state.requested_bytes
    }
}

fn region_bytes(state: &State) -> u64 {
    state.plugged.len() as u64 * BLOCK_BYTES
}

fn usable_for(state: &State, bytes: u64) -> u64 {
    bytes
        .checked_next_multiple_of(USABLE_BYTES)
        .unwrap_or(u64::MAX)
        .min(region_bytes(state))
}

/// The device before activation.
pub struct Mem {
    shared: Arc<Shared>,
    reclaim: Arc<dyn Reclaim>,
}

impl Mem {
    /// A device with nothing plugged, for the region of `length` bytes from `base`, both multiples of [`USABLE_BYTES`];
    /// `changed` is written to after each change of what is plugged.
    pub fn new(base: u64, length: u64, reclaim: Arc<dyn Reclaim>, changed: EventFd) -> Self {
        let blocks = usize::try_from(length / BLOCK_BYTES).unwrap_or(0);
        Self {
            shared: Arc::new(Shared {
                base,
                state: Mutex::new(State {
                    plugged: vec![false; blocks],
                    plugged_bytes: 0,
                    requested_bytes: 0,
                    usable_bytes: 0,
                }),
                interrupt: Mutex::default(),
                changed,
            }),
            reclaim,
        }
    }

    /// To be taken before the device is handed to its transport.
    pub fn handle(&self) -> MemHandle {
        MemHandle(self.shared.clone())
    }
}

impl VirtioDevice for Mem {
    fn profile(&self) -> Profile {
        Profile {
            device_id: DEVICE_ID,
            name: "mem",
            features: 1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE,
            queue_sizes: vec![QUEUE_SIZE],
            shared_memory: Vec::new(),
        }
    }

    /// `struct virtio_mem_config` (§5.15.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let state = lock(&self.shared.state);
        let node_id = 0;
        let fields = [
            BLOCK_BYTES,
            node_id,
            self.shared.base,
            region_bytes(&state),
            state.usable_bytes,
            state.plugged_bytes,
            state.requested_bytes,
        ];
        let config: Vec<u8> = fields.iter().flat_map(|f| f.to_le_bytes()).collect();
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queue = activation
            .queues
            .into_iter()
            .nth(REQUEST_QUEUE)
            .filter(Virtqueue::is_enabled)
            .ok_or(ActivateError::QueueMissing(REQUEST_QUEUE))?;
        // What is plugged stays so across a reset (§5.15.5): a driver that comes anew unplugs it first.
        *lock(&self.shared.interrupt) = Some(activation.interrupt);
        Ok(Box::new(MemHandler {
            queue,
            shared: self.shared.clone(),
            reclaim: self.reclaim.clone(),
        }))
    }
}

struct MemHandler {
    queue: Virtqueue,
    shared: Arc<Shared>,
    reclaim: Arc<dyn Reclaim>,
}

impl Handler for MemHandler {
    fn serve(&mut self, _event: Event) -> Served {
        let (shared, reclaim) = (&self.shared, self.reclaim.as_ref());
        self.queue.serve("mem", |chain| {
            let (verdict, state) = answer(&read_request(&chain), shared, reclaim);
            write_response(&chain, verdict, state)
        })
    }
}

impl Drop for MemHandler {
    fn drop(&mut self) {
        *lock(&self.shared.interrupt) = None;
    }
}

/// The request, however the driver has split it. What is missing of it, or lies outside of RAM, is zero.
fn read_request(chain: &Chain) -> [u8; REQUEST_BYTES] {
    let mut request = [0; REQUEST_BYTES];
    let mut rest = &mut request[..];
    for descriptor in chain.clone().readable() {
        let length = rest.len().min(descriptor.len() as usize);
        let (piece, after) = rest.split_at_mut(length);
        // A buffer outside of RAM has no content.
        let _ = chain.memory().read_slice(piece, descriptor.addr());
        rest = after;
    }
    request
}

/// Writes the response as far as there is room for it; returns how many bytes.
fn write_response(chain: &Chain, verdict: Verdict, state: BlockState) -> u32 {
    let mut response = [0; RESPONSE_BYTES];
    response[..2].copy_from_slice(&(verdict as u16).to_le_bytes());
    response[8..].copy_from_slice(&(state as u16).to_le_bytes());
    let mut rest = &response[..];
    for descriptor in chain.clone().writable() {
        let (piece, after) = rest.split_at(rest.len().min(descriptor.len() as usize));
        if chain
            .memory()
            .write_slice(piece, descriptor.addr())
            .is_err()
        {
            break;
        }
        rest = after;
    }
    (RESPONSE_BYTES - rest.len()) as u32
}

/// Does what a request asks (§5.15.6.1 to §5.15.6.4). The state is meant only for a request for it.
fn answer(
    request: &[u8; REQUEST_BYTES],
    shared: &Shared,
    reclaim: &dyn Reclaim,
) -> (Verdict, BlockState) {
    let number = |at: usize| u16::from_le_bytes([request[at], request[at + 1]]);
    let mut address = [0; 8];
    address.copy_from_slice(&request[8..16]);
    let blocks = shared.blocks(u64::from_le_bytes(address), number(16));
    let verdict = match (number(0), blocks) {
        (REQUEST_PLUG, Some(blocks)) => shared.plug(blocks),
        (REQUEST_UNPLUG, Some(blocks)) => shared.unplug(blocks, reclaim),
        (REQUEST_UNPLUG_ALL, _) => shared.unplug_all(reclaim),
        (REQUEST_STATE, Some(blocks)) => return (Verdict::Ack, shared.state_of(blocks)),
        _ => Verdict::Error,
    };
    (verdict, BlockState::Plugged)
}

impl Shared {
    /// Blocks of the usable region, by the address of the first; None if they are not wholly of it, or none.
    fn blocks(&self, address: u64, count: u16) -> Option<Range<usize>> {
        let offset = address.checked_sub(self.base)?;
        let end = offset.checked_add(u64::from(count) * BLOCK_BYTES)?;
        let usable = lock(&self.state).usable_bytes;
        if count == 0 || !offset.is_multiple_of(BLOCK_BYTES) || end > usable {
            return None;
        }
        let block = |offset: u64| usize::try_from(offset / BLOCK_BYTES).ok();
        Some(block(offset)?..block(end)?)
    }

    fn plug(&self, blocks: Range<usize>) -> Verdict {
        let mut state = lock(&self.state);
        let bytes = blocks.len() as u64 * BLOCK_BYTES;
        if state.plugged_bytes + bytes > state.requested_bytes {
            return Verdict::Nack;
        }
        if !all(&state, &blocks, false) {
            return Verdict::Error;
        }
        state.plugged[blocks].fill(true);
        state.plugged_bytes += bytes;
        drop(state);
        self.tell();
        Verdict::Ack
    }

    fn unplug(&self, blocks: Range<usize>, reclaim: &dyn Reclaim) -> Verdict {
        if !all(&lock(&self.state), &blocks, true) {
            return Verdict::Error;
        }
        // Without the lock, as it can take long, and a vCPU may want to read the configuration meanwhile. Nobody else unplugs.
        self.give_back(blocks.clone(), reclaim);
        let mut state = lock(&self.state);
        state.plugged_bytes -= blocks.len() as u64 * BLOCK_BYTES;
        state.plugged[blocks].fill(false);
        drop(state);
        self.tell();
        Verdict::Ack
    }

    fn unplug_all(&self, reclaim: &dyn Reclaim) -> Verdict {
        let usable = lock(&self.state).usable_bytes;
        let blocks = usize::try_from(usable / BLOCK_BYTES).unwrap_or(0);
        if blocks > 0 {
            self.give_back(0..blocks, reclaim);
        }
        let mut state = lock(&self.state);
        state.plugged.fill(false);
        state.plugged_bytes = 0;
        drop(state);
        self.tell();
        Verdict::Ack
    }

    fn state_of(&self, blocks: Range<usize>) -> BlockState {
        let state = lock(&self.state);
        match (all(&state, &blocks, true), all(&state, &blocks, false)) {
            (true, _) => BlockState::Plugged,
            (_, true) => BlockState::Unplugged,
            (false, false) => BlockState::Mixed,
        }
    }

    fn give_back(&self, blocks: Range<usize>, reclaim: &dyn Reclaim) {
        let address = GuestAddress(self.base + blocks.start as u64 * BLOCK_BYTES);
        let length = blocks.len() as u64 * BLOCK_BYTES;
        if let Err(e) = reclaim.reclaim(address, length) {
            tracing::debug!(error = %e, address = address.0, length, "can't give memory back");
        }
    }

    fn tell(&self) {
        // A full counter, the only possible failure, wakes as well.
        let _ = self.changed.write(1);
    }
}

fn all(state: &State, blocks: &Range<usize>, plugged: bool) -> bool {
    state.plugged[blocks.clone()]
        .iter()
        .all(|is| *is == plugged)
}

#[cfg(test)]
#[path = "mem_tests.rs"]
mod tests;
