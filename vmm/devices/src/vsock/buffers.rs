//! Where the bytes of one descriptor chain are: checked once, then read and written in place.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemory, VolatileSlice};

use super::packet::{HEADER_LEN, Header};
use crate::queue::Chain;
use crate::ram::Ram;

/// More pieces than any driver has use for (Linux: 18 at most); keeps an indirect table from growing us.
const MAX_PIECES: usize = 1024;

/// Which half of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Half {
    /// What the driver wrote for us (tx ring).
    Readable,
    /// What we may fill (rx ring).
    Writable,
}

/// The pieces of guest RAM that one half of a chain consists of; reused from chain to chain.
#[derive(Debug, Default)]
pub struct Buffers {
    pieces: Vec<(GuestAddress, usize)>,
    total: usize,
}

impl Buffers {
    /// Takes the pieces of `chain`. False if the chain can't hold a packet: too short, in too
    /// many pieces, or outside of RAM.
    pub fn load(&mut self, memory: &Ram, chain: Chain, half: Half) -> bool {
        self.pieces.clear();
        self.total = 0;
        for descriptor in chain {
            if descriptor.is_write_only() == (half == Half::Writable)
                && !self.push(memory, &descriptor)
            {
                return false;
            }
        }
        match half {
            Half::Readable => self.total >= HEADER_LEN,
            // Without room for payload, bytes for the guest would wait for ever.
            Half::Writable => self.total > HEADER_LEN,
        }
    }

    fn push(&mut self, memory: &Ram, descriptor: &Descriptor) -> bool {
        let len = descriptor.len() as usize;
        let fits = self.pieces.len() < MAX_PIECES && memory.check_range(descriptor.addr(), len);
        if fits && len > 0 {
            self.pieces.push((descriptor.addr(), len));
            self.total = self.total.saturating_add(len);
        }
        fits
    }

    /// Bytes of room after the header.
    pub fn payload_len(&self) -> usize {
        self.total.saturating_sub(HEADER_LEN)
    }

    /// The packet's header, wherever its bytes are.
    pub fn header(&self, memory: &Ram) -> Header {
        let mut raw = [0; HEADER_LEN];
        let mut rest = raw.as_mut_slice();
        for slice in self.slices(memory, 0, HEADER_LEN) {
            let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.copy_to(now);
            rest = later;
        }
        Header::parse(&raw)
    }

    /// Writes the packet's header.
    pub fn set_header(&self, memory: &Ram, header: &Header) {
        let raw = header.encode();
        let mut rest = raw.as_slice();
        for slice in self.slices(memory, 0, HEADER_LEN) {
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
    }

    /// The first `len` bytes of payload, piece by piece.
    pub fn payload<'a>(
        &'a self,
        memory: &'a Ram,
        len: usize,
    ) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.slices(memory, HEADER_LEN, len)
    }

    fn slices<'a>(
        &'a self,
        memory: &'a Ram,
        skip: usize,
        len: usize,
    ) -> impl Iterator<Item = VolatileSlice<'a>> {
        let (mut skip, mut left) = (skip, len);
        self.pieces
            .iter()
            .filter_map(move |&(address, size)| {
                let from = skip.min(size);
                let count = (size - from).min(left);
                skip -= from;
                left -= count;
                // `load` has checked the whole piece, so the sum stays inside of RAM.
                (count > 0).then(|| (GuestAddress(address.0.saturating_add(from as u64)), count))
            })
            .flat_map(move |(address, count)| {
                memory.get_slices(address, count).filter_map(Result::ok)
            })
    }
}
