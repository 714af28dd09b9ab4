//! Serves the two rings of a NIC (virtio 1.2 §5.1.6): frames out of tx to the port, frames of the port into rx.

use std::io;
use std::sync::Arc;

use vm_memory::{GuestMemory, VolatileSlice};

use super::port::{Offloads, Port};
use super::rx::{Received, Rx};
use super::slot::Slot;
use super::{FRAME_BYTES_MAX, HEADER_BYTES, RX, TX};
use crate::device::{Event, GuestRam, Handler, Served, Source};
use crate::queue::{Budget, Chain, RingError, Virtqueue};

/// The token of the slot's changes. Ports count up from there: each has one of its own.
const CHANGED: u64 = 0;
/// More pieces than any driver has use for (Linux: 19), and no more than writev(2) takes.
const PIECES_MAX: usize = 512;
/// Frames received before the worker's other duties are due; the port stays readable if there are more.
const TURN: u32 = 512;

/// A NIC at work.
pub(super) struct NetHandler {
    slot: Arc<Slot>,
    offloads: Offloads,
    memory: GuestRam,
    rx: Rx,
    tx: Virtqueue,
    port: Option<Arc<dyn Port>>,
    port_token: u64,
    /// rx has no buffer, so the port isn't looked at until the driver kicks.
    starved: bool,
}

impl NetHandler {
    pub fn new(
        memory: GuestRam,
        features: u64,
        rx: Virtqueue,
        tx: Virtqueue,
        slot: Arc<Slot>,
    ) -> Self {
        let mut handler = Self {
            slot,
            offloads: Offloads::of(features),
            rx: Rx::new(rx, features),
            memory,
            tx,
            port: None,
            port_token: CHANGED,
            starved: false,
        };
        handler.look();
        handler
    }

    /// Takes what is in the slot now.
    fn look(&mut self) {
        let port = self.slot.look();
        let same = match (&port, &self.port) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        self.rx.forget_frame();
        self.port_token += 1;
        self.starved = false;
        self.port = port.filter(|port| match port.set_offloads(self.offloads) {
            Ok(()) => true,
            Err(error) => {
                self.lost(port, &error);
                false
            }
        });
    }

    fn lost(&self, port: &Arc<dyn Port>, error: &io::Error) {
        if self.tx.may_warn() {
            tracing::warn!(%error, "a NIC's port has come to its end; the link is down");
        }
        self.slot.lose(port);
    }

    fn turn(&mut self, event: Event) -> Result<Served, RingError> {
        const RX_KICK: u16 = RX as u16;
        const TX_KICK: u16 = TX as u16;
        match event {
            Event::Queue(TX_KICK) => {
                self.transmit()?;
                Ok(Served::Done)
            }
            // Without EVENT_IDX a driver may kick though nobody has asked for it.
            Event::Queue(RX_KICK) if self.starved => {
                self.starved = false;
                self.receive()?;
                Ok(Served::SourcesChanged)
            }
            Event::Queue(_) => Ok(Served::Done),
            Event::Source { token: CHANGED, .. } => {
                self.look();
                Ok(Served::SourcesChanged)
            }
            Event::Source { token, .. } if token == self.port_token => {
                self.receive()?;
                Ok(if self.is_listening() {
                    Served::Done
                } else {
                    Served::SourcesChanged
                })
            }
            Event::Source { .. } => Ok(Served::Done),
        }
    }

    fn transmit(&mut self) -> Result<(), RingError> {
        let (memory, port) = (&self.memory, &self.port);
        self.tx.drain(|chain| {
            if let Some(port) = port {
                send(memory, port.as_ref(), chain);
            }
            // Nothing is written into a tx chain; a frame without a wire is lost, as in any NIC.
            0
        })
    }

    fn receive(&mut self) -> Result<(), RingError> {
        let Some(port) = self.port.clone() else {
            return Ok(());
        };
        let received = self.rx.receive(port.as_ref(), &mut Budget::new(TURN));
        self.rx.notify()?;
        match received? {
            Received::All => {}
            Received::NoBuffers => self.starved = true,
            Received::End(error) => {
                self.port = None;
                self.rx.forget_frame();
                self.lost(&port, &error);
            }
        }
        Ok(())
    }

    fn is_listening(&self) -> bool {
        self.port.is_some() && !self.starved
    }
}

impl Handler for NetHandler {
    fn sources(&self) -> Vec<Source> {
        let source = |fd, token| Source {
            fd,
            token,
            read: true,
            write: false,
        };
        let port = self.port.as_ref().filter(|_| self.is_listening());
        let port = port.map(|port| source(port.fd(), self.port_token));
        std::iter::once(source(self.slot.changed_fd(), CHANGED))
            .chain(port)
            .collect()
    }

    fn serve(&mut self, event: Event) -> Served {
        match self.turn(event) {
            Ok(served) => served,
            Err(error) => {
                if self.tx.may_warn() {
                    tracing::warn!(device = "net", %error, "the guest broke a ring");
                }
                Served::Broken
            }
        }
    }
}

impl Drop for NetHandler {
    fn drop(&mut self) {
        self.slot.set_interrupt(None);
    }
}

/// Sends a chain's frame. One that is too short, too long, in too many pieces or not in RAM is none (§5.1.6.2).
fn send(memory: &GuestRam, port: &dyn Port, chain: Chain) {
    let mut pieces: Vec<VolatileSlice<'_>> = Vec::with_capacity(4);
    let mut length = 0usize;
    for descriptor in chain.readable() {
        length = length.saturating_add(descriptor.len() as usize);
        if length > FRAME_BYTES_MAX || pieces.len() >= PIECES_MAX {
            return;
        }
        for slice in memory.get_slices(descriptor.addr(), descriptor.len() as usize) {
            let Ok(slice) = slice else {
                return;
            };
            pieces.push(slice);
        }
    }
    if length > HEADER_BYTES
        && let Err(error) = port.send(&pieces)
    {
        tracing::debug!(%error, "a frame of the guest is lost");
    }
}
