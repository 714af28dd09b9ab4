//! Frames into the driver's receive buffers (virtio 1.2 §5.1.6.3, §5.1.6.4), over as many of them as a frame needs.
//!
//! A frame is read straight into the buffers that are there, and what they have no room for into a reserve of our own;
//! from there it goes to the next buffers that the driver offers. So no frame is cut, and a driver with few buffers gets
//! small frames all the same.

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vm_memory::{Bytes, GuestAddress, GuestMemory, VolatileSlice};

use super::port::Port;
use super::{FRAME_BYTES_MAX, HEADER_BYTES};
use crate::queue::{Budget, RingError, Virtqueue};

/// Pieces of one chain, and of those that are enough to read a frame into. Even if each of them lies across the end of a
/// region of RAM and so counts twice, they stay below the 1024 of readv(2).
const CHAIN_PIECES_MAX: usize = 256;
const PIECES_MAX: usize = 256;
/// Where `num_buffers` is in the header (§5.1.6).
const NUM_BUFFERS: usize = 10;

/// Why [`Rx::receive`] returned.
pub(super) enum Received {
    /// The port has nothing more, or the turn is over.
    All,
    /// The driver has to offer buffers and to kick.
    NoBuffers,
    /// The port has come to its end.
    End(io::Error),
}

/// A chain that is taken from the ring and not filled yet.
struct Posted {
    head: u16,
    pieces: usize,
    length: usize,
}

/// The receive ring.
pub(super) struct Rx {
    queue: Virtqueue,
    mergeable: bool,
    /// Oldest first, and the pieces of all of them one after the other.
    chains: VecDeque<Posted>,
    pieces: VecDeque<(GuestAddress, usize)>,
    /// Bytes in all chains.
    room: usize,
    reserve: Box<[u8]>,
    /// A frame whose end is in the reserve.
    waiting: Option<Waiting>,
}

struct Waiting {
    length: usize,
    /// How much of it is in the chains; the rest is at the reserve's begin.
    placed: usize,
}

impl Rx {
    pub fn new(queue: Virtqueue, features: u64) -> Self {
        Self {
            queue,
            mergeable: features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0,
            chains: VecDeque::new(),
            pieces: VecDeque::new(),
            room: 0,
            reserve: vec![0; FRAME_BYTES_MAX].into_boxed_slice(),
            waiting: None,
        }
    }

    /// Loses a frame that waits for buffers: what it came from is gone.
    pub fn forget_frame(&mut self) {
        self.waiting = None;
    }

    /// Interrupts the driver if it wants that.
    pub fn notify(&mut self) -> Result<(), RingError> {
        self.queue.notify()
    }

    /// Receives while there are frames, buffers and budget. Kicks are wanted only when there are no buffers.
    pub fn receive(&mut self, port: &dyn Port, budget: &mut Budget) -> Result<Received, RingError> {
        self.queue.disable_kicks()?;
        loop {
            self.gather()?;
            if self.is_short() {
                if !self.queue.enable_kicks()? {
                    return Ok(Received::NoBuffers);
                }
                self.queue.disable_kicks()?;
                continue;
            }
            if let Some(waiting) = self.waiting.take() {
                self.place_rest(&waiting);
                self.deliver(waiting.length)?;
                continue;
            }
            if !budget.take() {
                return Ok(Received::All);
            }
            match self.read(port) {
                Ok(length) => self.take_in(length)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Received::All);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Received::End(error)),
            }
        }
    }

    /// Whether there is no room to go on.
    fn is_short(&self) -> bool {
        match &self.waiting {
            Some(waiting) => self.room < waiting.length,
            None => self.chains.is_empty(),
        }
    }

    /// Takes chains from the ring, up to what the longest frame needs. One that can't hold a header, or is not in RAM, is
    /// given back empty.
    fn gather(&mut self) -> Result<(), RingError> {
        while self.wants_chain() {
            let Some(chain) = self.queue.pop()? else {
                return Ok(());
            };
            let head = chain.head_index();
            let before = self.pieces.len();
            let mut length = 0;
            let mut good = true;
            for descriptor in chain.writable().take(CHAIN_PIECES_MAX) {
                let size = (descriptor.len() as usize).min(FRAME_BYTES_MAX);
                good &= self.queue.memory().check_range(descriptor.addr(), size);
                if size > 0 {
                    self.pieces.push_back((descriptor.addr(), size));
                    length += size;
                }
            }
            if good && length >= HEADER_BYTES {
                self.chains.push_back(Posted {
                    head,
                    pieces: self.pieces.len() - before,
                    length,
                });
                self.room += length;
            } else {
                self.pieces.truncate(before);
                self.queue.complete(head, 0)?;
            }
        }
        Ok(())
    }

    fn wants_chain(&self) -> bool {
        if !self.mergeable {
            return self.chains.is_empty();
        }
        // A frame that waits needs no readv any more.
        self.room < FRAME_BYTES_MAX && (self.pieces.len() < PIECES_MAX || self.waiting.is_some())
    }

    fn read(&mut self, port: &dyn Port) -> io::Result<usize> {
        let memory = self.queue.memory();
        let mut pieces: Vec<VolatileSlice<'_>> = Vec::with_capacity(self.pieces.len() + 1);
        for (address, length) in &self.pieces {
            // They were found to be in RAM when they were gathered.
            pieces.extend(memory.get_slices(*address, *length).filter_map(Result::ok));
        }
        pieces.push(VolatileSlice::from(&mut *self.reserve));
        port.receive(&pieces)
    }

    /// A frame of so many bytes was read.
    fn take_in(&mut self, length: usize) -> Result<(), RingError> {
        if length < HEADER_BYTES || length > self.room + self.reserve.len() {
            return Ok(());
        }
        if length <= self.room {
            return self.deliver(length);
        }
        if self.mergeable && length <= FRAME_BYTES_MAX {
            self.waiting = Some(Waiting {
                length,
                placed: self.room,
            });
        }
        // Without mergeable buffers, a frame that is longer than the buffer is lost (§5.1.6.4).
        Ok(())
    }

    /// Copies the end of a frame from the reserve to where it belongs.
    fn place_rest(&self, waiting: &Waiting) {
        let rest = self.reserve.get(..waiting.length - waiting.placed);
        self.write_at(waiting.placed, rest.unwrap_or_default());
    }

    /// Writes to what is `offset` bytes behind the begin of the first chain.
    fn write_at(&self, mut offset: usize, mut bytes: &[u8]) {
        for (address, length) in &self.pieces {
            if bytes.is_empty() {
                return;
            }
            let from = offset.min(*length);
            offset -= from;
            let (now, later) = bytes.split_at(bytes.len().min(length - from));
            if !now.is_empty() {
                // It is in RAM, and its end too.
                let at = GuestAddress(address.0.wrapping_add(from as u64));
                let _ = self.queue.memory().write_slice(now, at);
            }
            bytes = later;
        }
    }

    /// Gives the driver the chains that the first `length` bytes are in, all at once.
    fn deliver(&mut self, length: usize) -> Result<(), RingError> {
        let mut used = Vec::with_capacity(4);
        let mut left = length;
        for chain in &self.chains {
            let written = left.min(chain.length);
            used.push((chain.head, written as u32));
            left -= written;
            if left == 0 {
                break;
            }
        }
        // A frame has at most as many bytes as fit this number, and a chain has at least twelve.
        let num_buffers = u16::try_from(used.len()).unwrap_or(u16::MAX);
        self.write_at(NUM_BUFFERS, &num_buffers.to_le_bytes());
        for chain in self.chains.drain(..used.len()) {
            self.room -= chain.length;
            self.pieces.drain(..chain.pieces);
        }
        self.queue.complete_together(&used)
    }
}
