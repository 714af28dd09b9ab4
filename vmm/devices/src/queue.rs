//! A split virtqueue (virtio 1.2 §2.7) as a device's handler uses it: pop chains, complete them, notify.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::device::{GuestRam, Interrupt, Served};
use crate::ram::Ram;

/// A descriptor chain over the guest's RAM.
pub type Chain = DescriptorChain<GuestRam>;

/// The ring holds what no correct driver writes: indices out of range, addresses outside of RAM.
/// The device must ask for a reset (virtio 1.2 §2.1.2).
#[derive(Debug, thiserror::Error)]
#[error("virtqueue {index}: {what}")]
pub struct RingError {
    /// Which queue.
    pub index: u16,
    /// What is wrong with it.
    pub what: String,
}

/// One queue of an activated device, with its memory and its interrupt.
pub struct Virtqueue {
    index: u16,
    queue: Queue,
    memory: GuestRam,
    interrupt: Arc<dyn Interrupt>,
    kick: Option<Arc<EventFd>>,
    /// Something was completed since the driver was last notified, or chose not to be.
    completed: bool,
    /// The used index at that time.
    notified: u16,
}

/// How many times the ring's length [`Virtqueue::drain`] serves before it lets the worker's other duties run.
const ROUNDS: u32 = 2;
/// How long it does so: a single chain may be worth a megabyte of disk. Tests count chains, also on slow, emulated processors.
const TURN: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5 });

/// What is left of a handler's turn, after which the worker's other duties are due.
#[derive(Debug)]
pub struct Budget {
    chains: u32,
    until: Instant,
}

impl Budget {
    /// So many chains, and no more than a few milliseconds.
    pub fn new(chains: u32) -> Self {
        Self {
            chains,
            until: Instant::now() + TURN,
        }
    }

    /// Takes one chain's worth, if there is one.
    pub fn take(&mut self) -> bool {
        if self.is_spent() {
            return false;
        }
        self.chains -= 1;
        true
    }

    /// Whether the turn is over.
    pub fn is_spent(&self) -> bool {
        self.chains == 0 || Instant::now() >= self.until
    }
}

impl Virtqueue {
    /// Wraps a queue that the driver has configured.
    pub fn new(index: u16, queue: Queue, memory: GuestRam, interrupt: Arc<dyn Interrupt>) -> Self {
        Self {
            index,
            notified: queue.next_used(),
            queue,
            memory,
            interrupt,
            kick: None,
            completed: false,
        }
    }

    /// Lets [`Virtqueue::drain`] kick itself, so that a driver that never stops adding chains can't keep the
    /// worker to itself.
    pub fn kick_with(&mut self, kick: Arc<EventFd>) {
        self.kick = Some(kick);
    }

    /// Its number within the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the driver enabled it (QueueReady).
    pub fn is_enabled(&self) -> bool {
        self.queue.ready()
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &Ram {
        &self.memory
    }

    /// The next available chain, if any.
    ///
    /// # Errors
    /// The driver's available index is impossible, or the ring lies outside of RAM.
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        let index = self.index;
        let promised = self
            .queue
            .avail_idx(self.memory.deref(), Ordering::Acquire)
            .map_err(|e| ring_error(index, &e))?;
        // `iter` checks what `pop_descriptor_chain` silently passes over: an index further ahead than the ring is long.
        let chain = self
            .queue
            .iter(self.memory.clone())
            .map_err(|e| ring_error(index, &e))?
            .next();
        // Without this, a ring that can't be read would look empty and yet never be: an endless loop.
        if chain.is_none() && promised.0 != self.queue.next_avail() {
            return Err(RingError {
                index,
                what: "an available entry can't be read".to_owned(),
            });
        }
        Ok(chain)
    }

    /// Gives back the chain that starts at `head`; `written` bytes of its device-writable part were filled.
    /// Does not interrupt yet: see [`Virtqueue::notify`].
    ///
    /// # Errors
    /// The head or the used ring lie outside of their bounds.
    pub fn complete(&mut self, head: u16, written: u32) -> Result<(), RingError> {
        self.completed = true;
        self.queue
            .add_used(self.memory.deref(), head, written)
            .map_err(|e| ring_error(self.index, &e))
    }

    /// Gives back several chains so that the driver sees all of them or none (virtio 1.2 §5.1.6.4.1 wants that for a
    /// packet in several buffers): each a head, and how many bytes were written to it. At most as many as the ring is long.
    ///
    /// # Errors
    /// As [`Virtqueue::complete`].
    pub fn complete_together(&mut self, chains: &[(u16, u32)]) -> Result<(), RingError> {
        let Some((last, before)) = chains.split_last() else {
            return Ok(());
        };
        let first = self.queue.next_used();
        for (place, (head, written)) in (0..).zip(before) {
            let slot = u64::from(first.wrapping_add(place) % self.queue.size());
            let element = u64::from(*written) << 32 | u64::from(*head);
            self.used_address(4 + 8 * slot)
                .and_then(|at| self.memory.write_obj(element.to_le(), at).ok())
                .ok_or_else(|| self.outside_of_ram())?;
        }
        // The index, which makes them visible, is written once, after the last.
        self.queue
            .set_next_used(first.wrapping_add(before.len() as u16));
        self.complete(last.0, last.1)
    }

    /// Interrupts the driver if it wants to hear of what was completed since the last call (§2.7.7, §2.7.10).
    ///
    /// # Errors
    /// The ring lies outside of RAM.
    pub fn notify(&mut self) -> Result<(), RingError> {
        if std::mem::take(&mut self.completed) && self.is_wanted()? {
            self.interrupt.signal_queue(self.index);
        }
        Ok(())
    }

    /// Without EVENT_IDX always; with it, if the index that the driver waits for is among those passed since it was asked last
    /// (§2.7.10). `Queue::needs_notification` counts calls of `add_used` instead, and so misses what was completed together.
    fn is_wanted(&mut self) -> Result<bool, RingError> {
        if !self.queue.event_idx_enabled() {
            return Ok(true);
        }
        // Our writes to the used ring come before the look at what the driver waits for.
        fence(Ordering::SeqCst);
        let used_event = 4 + 2 * u64::from(self.queue.size());
        let event: u16 = self
            .queue
            .avail_ring()
            .checked_add(used_event)
            .and_then(|at| {
                self.memory
                    .load(GuestAddress(at), Ordering::Relaxed)
                    .map(u16::from_le)
                    .ok()
            })
            .ok_or_else(|| self.outside_of_ram())?;
        let now = self.queue.next_used();
        let before = std::mem::replace(&mut self.notified, now);
        let since_event = now.wrapping_sub(event).wrapping_sub(1);
        Ok(since_event < now.wrapping_sub(before))
    }

    fn used_address(&self, offset: u64) -> Option<GuestAddress> {
        self.queue.used_ring().checked_add(offset).map(GuestAddress)
    }

    fn outside_of_ram(&self) -> RingError {
        RingError {
            index: self.index,
            what: "a ring lies outside of RAM".to_owned(),
        }
    }

    /// All that a simple device's handler does for a kick: [`Virtqueue::drain`], where a broken ring is told to the log, in
    /// the name of `device`, and to the worker.
    pub fn serve(&mut self, device: &'static str, serve: impl FnMut(Chain) -> u32) -> Served {
        match self.drain(serve) {
            Ok(()) => Served::Done,
            Err(error) => {
                if self.may_warn() {
                    tracing::warn!(device, %error, "the guest broke a ring");
                }
                Served::Broken
            }
        }
    }

    /// Pops and serves every available chain, with kicks switched off meanwhile, then interrupts once.
    /// `serve` returns the number of bytes it wrote into the chain. After a few rings' worth of chains or
    /// a few milliseconds it returns too and goes on by a kick of its own, if it has one ([`Virtqueue::kick_with`]).
    ///
    /// # Errors
    /// As [`Virtqueue::pop`]; what was served before is completed and notified.
    pub fn drain(&mut self, mut serve: impl FnMut(Chain) -> u32) -> Result<(), RingError> {
        let chains = ROUNDS * u32::from(self.queue.size());
        let mut budget = self.kick.is_some().then(|| Budget::new(chains));
        loop {
            self.disable_kicks()?;
            let served = self.serve_available(&mut serve, budget.as_mut());
            self.notify()?;
            served?;
            if !self.enable_kicks()? {
                return Ok(());
            }
            if budget.as_ref().is_some_and(Budget::is_spent)
                && let Some(kick) = &self.kick
            {
                // A full counter (the only possible failure) wakes the worker as well.
                let _ = kick.write(1);
                return Ok(());
            }
        }
    }

    fn serve_available(
        &mut self,
        serve: &mut impl FnMut(Chain) -> u32,
        mut budget: Option<&mut Budget>,
    ) -> Result<(), RingError> {
        while budget.as_mut().is_none_or(|budget| budget.take()) {
            let Some(chain) = self.pop()? else {
                return Ok(());
            };
            let head = chain.head_index();
            let written = serve(chain);
            self.complete(head, written)?;
        }
        Ok(())
    }

    /// Asks the driver not to kick.
    ///
    /// # Errors
    /// The ring lies outside of RAM.
    pub fn disable_kicks(&mut self) -> Result<(), RingError> {
        self.queue
            .disable_notification(self.memory.deref())
            .map_err(|e| ring_error(self.index, &e))
    }

    /// Asks the driver to kick again; true if chains became available meanwhile and must be drained first.
    ///
    /// # Errors
    /// The ring lies outside of RAM.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        self.queue
            .enable_notification(self.memory.deref())
            .map_err(|e| ring_error(self.index, &e))
    }

    /// See [`Interrupt::may_warn`].
    pub fn may_warn(&self) -> bool {
        self.interrupt.may_warn()
    }

    /// Puts the chain popped last back, for a device that can't serve it yet.
    pub fn undo_pop(&mut self) {
        self.queue.go_to_previous_position();
    }
}

fn ring_error(index: u16, source: &virtio_queue::Error) -> RingError {
    RingError {
        index,
        what: source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::testing::{DriverQueue, FakeInterrupt, ram};

    /// `used_event` and `avail_event` (virtio 1.2 §2.7.6, §2.7.8) of a ring of 8.
    fn events(driver: &DriverQueue) -> (GuestAddress, GuestAddress) {
        let used_event = driver.available_ring() + 4 + 2 * 8;
        let available_event = driver.used_ring() + 4 + 8 * 8;
        (GuestAddress(used_event), GuestAddress(available_event))
    }

    #[test]
    fn with_event_idx_a_driver_is_interrupted_where_it_asked_for_it() {
        let memory = ram(2);
        let mut driver = DriverQueue::new(&memory, 0, 8);
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut queue = driver.virtqueue(interrupt.clone());
        queue.queue.set_event_idx(true);
        let (used_event, available_event) = events(&driver);
        memory.write_obj(4u16, used_event).unwrap();
        let mut interrupts = Vec::new();
        for _ in 0..3 {
            for _ in 0..2 {
                let buffer = driver.readable(b"x");
                driver.add(&[buffer]);
            }
            queue.drain(|_| 0).unwrap();
            interrupts.push(interrupt.take_queues().len());
        }
        assert_eq!(interrupts, [0, 0, 1], "the fifth completion was asked for");
        let wanted: u16 = memory.read_obj(available_event).unwrap();
        assert_eq!(wanted, 6, "the next chain is to be kicked");
    }

    #[test]
    fn chains_completed_together_appear_together_and_are_counted() {
        let memory = ram(2);
        let mut driver = DriverQueue::new(&memory, 0, 8);
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut queue = driver.virtqueue(interrupt.clone());
        queue.queue.set_event_idx(true);
        let (used_event, _) = events(&driver);
        // Twice around the ring: used elements wrap too.
        for round in 0..6u16 {
            memory.write_obj(3 * round + 1, used_event).unwrap();
            let mut heads = Vec::new();
            for _ in 0..3 {
                let buffer = driver.writable(1);
                driver.add(&[buffer]);
                heads.push((queue.pop().unwrap().unwrap().head_index(), 7));
            }
            queue.complete_together(&heads).unwrap();
            queue.notify().unwrap();
            let seen: Vec<_> = std::iter::from_fn(|| driver.used()).collect();
            assert_eq!(seen, heads);
            // The driver asked for the second of the three.
            assert_eq!(interrupt.take_queues().len(), 1, "round {round}");
        }
    }

    #[test]
    fn an_empty_ring_interrupts_nobody() {
        let driver = DriverQueue::new(&ram(2), 0, 8);
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut queue = driver.virtqueue(interrupt.clone());
        queue.drain(|_| 0).unwrap();
        assert!(interrupt.take_queues().is_empty());
    }

    #[test]
    fn a_slow_chain_ends_the_turn_and_the_rest_is_served_after_a_kick() {
        let mut driver = DriverQueue::new(&ram(2), 0, 8);
        let mut queue = driver.virtqueue(Arc::new(FakeInterrupt::default()));
        let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        queue.kick_with(kick.clone());
        for _ in 0..3 {
            let buffer = driver.readable(b"x");
            driver.add(&[buffer]);
        }
        let mut served = 0;
        let mut slow = |_: Chain| {
            served += 1;
            let end = Instant::now() + TURN;
            while Instant::now() < end {}
            0
        };
        queue.drain(&mut slow).unwrap();
        assert_eq!(kick.read().unwrap(), 1);
        queue.drain(&mut slow).unwrap();
        queue.drain(&mut slow).unwrap();
        assert_eq!(served, 3);
    }
}
