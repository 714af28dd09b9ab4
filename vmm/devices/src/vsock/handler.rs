//! The rings of the socket device (virtio 1.2 §5.10.2, §5.10.6.1): packets in from tx, packets out to rx.
//!
//! Nothing is queued for the guest here. A chain is taken from rx when the mux may have a packet, and put back if it
//! has none; when rx is empty, the mux waits, its sockets fill up, and the host programs wait.

use super::buffers::{Buffers, Half};
use super::mux::Mux;
use crate::device::{ActivateError, Activation, Event, GuestRam, Handler, Served, Source};
use crate::queue::{Budget, RingError, Virtqueue};

const TX: u16 = 1;
/// The token of the one source: the mux's epoll.
const HOST: u64 = 0;
/// How many chains of a ring are served before the worker gets a chance to look at its own orders. A guest
/// that refills faster than we drain would hold it for ever otherwise.
const TURN: u32 = 1024;

/// Serves the rings.
pub struct VsockHandler {
    memory: GuestRam,
    rx: Virtqueue,
    tx: Virtqueue,
    /// Holds the driver's event buffers. We never reset the transport, so they stay where they are.
    _events: Virtqueue,
    mux: Mux,
    buffers: Buffers,
    /// tx was left before it was empty, with kicks off.
    tx_pending: bool,
    broken: bool,
}

/// Why filling rx ended.
enum Filled {
    /// Nothing is left to send.
    All,
    /// The guest has no buffer.
    NoBuffer,
    /// The turn is over.
    Turn,
}

impl VsockHandler {
    /// Takes over the three queues.
    ///
    /// # Errors
    /// One of them is missing.
    pub fn new(activation: Activation, mux: Mux) -> Result<Self, ActivateError> {
        if let Some(missing) = activation.queues.iter().position(|q| !q.is_enabled()) {
            return Err(ActivateError::QueueMissing(missing));
        }
        let count = activation.queues.len();
        let [rx, tx, events] = <[Virtqueue; 3]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueMissing(count))?;
        Ok(Self {
            memory: activation.memory,
            rx,
            tx,
            _events: events,
            mux,
            buffers: Buffers::default(),
            // Whatever the driver put there before DRIVER_OK.
            tx_pending: true,
            broken: false,
        })
    }

    fn turn(&mut self, event: Event) -> Result<(), RingError> {
        match event {
            Event::Source { .. } => self.mux.poll(),
            Event::Queue(TX) => self.tx_pending = true,
            Event::Queue(_) => {}
        }
        if self.tx_pending {
            self.drain_tx()?;
        }
        self.fill_rx()?;
        // Filling rx may have made room for the answers that tx had to wait for.
        if self.tx_pending && !self.mux.owes_too_many_replies() {
            self.drain_tx()?;
            self.fill_rx()?;
            // Kicks are off: nobody else would wake us for the rest.
            if self.tx_pending && !self.mux.owes_too_many_replies() {
                self.mux.call_again();
            }
        }
        self.mux.admit();
        Ok(())
    }

    /// Takes packets until tx is empty, the turn is over, or the guest owes us buffers for the answers
    /// (virtio 1.2 §5.10.6.1.2).
    fn drain_tx(&mut self) -> Result<(), RingError> {
        self.tx_pending = true;
        let mut budget = Budget::new(TURN);
        loop {
            self.tx.disable_kicks()?;
            while !self.mux.owes_too_many_replies() && budget.take() {
                let Some(chain) = self.tx.pop()? else {
                    break;
                };
                let head = chain.head_index();
                if self.buffers.load(&self.memory, chain, Half::Readable) {
                    self.mux.receive(&self.memory, &self.buffers);
                }
                self.tx.complete(head, 0)?;
            }
            self.tx.notify()?;
            if self.mux.owes_too_many_replies() {
                return Ok(());
            }
            if budget.is_spent() {
                self.mux.call_again();
                return Ok(());
            }
            if !self.tx.enable_kicks()? {
                self.tx_pending = false;
                return Ok(());
            }
        }
    }

    /// Sends while there is something to send and a buffer for it. Kicks of rx are wanted only where a packet
    /// waits for a buffer.
    fn fill_rx(&mut self) -> Result<(), RingError> {
        let mut budget = Budget::new(TURN);
        loop {
            self.rx.disable_kicks()?;
            let filled = self.fill_rx_now(&mut budget)?;
            self.rx.notify()?;
            match filled {
                Filled::All => return Ok(()),
                Filled::Turn => {
                    self.mux.call_again();
                    return Ok(());
                }
                Filled::NoBuffer => {
                    if !self.rx.enable_kicks()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn fill_rx_now(&mut self, budget: &mut Budget) -> Result<Filled, RingError> {
        while self.mux.has_packet() {
            if !budget.take() {
                return Ok(Filled::Turn);
            }
            let Some(chain) = self.rx.pop()? else {
                return Ok(Filled::NoBuffer);
            };
            let head = chain.head_index();
            if !self.buffers.load(&self.memory, chain, Half::Writable) {
                self.rx.complete(head, 0)?;
                continue;
            }
            match self.mux.fill(&self.memory, &self.buffers) {
                Some(len) => self.rx.complete(head, len)?,
                None => self.rx.undo_pop(),
            }
        }
        Ok(Filled::All)
    }
}

impl Handler for VsockHandler {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            fd: self.mux.fd(),
            token: HOST,
            read: true,
            write: false,
        }]
    }

    fn serve(&mut self, event: Event) -> Served {
        if self.broken {
            return Served::Broken;
        }
        match self.turn(event) {
            Ok(()) => Served::Done,
            Err(error) => {
                self.broken = true;
                if self.tx.may_warn() {
                    tracing::warn!(%error, "vsock: broken ring");
                }
                Served::Broken
            }
        }
    }
}
