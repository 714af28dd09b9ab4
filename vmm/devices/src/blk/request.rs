//! A block request as the driver wrote it (virtio 1.2 §5.2.6): descriptor chain in, typed request out.

use vm_memory::{Bytes, GuestAddress};

use super::{RANGES_MAX, SEGMENTS_MAX};
use crate::queue::Chain;
use crate::ram::Ram;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: usize = 16;

/// `status` of §5.2.6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = VIRTIO_BLK_S_OK as u8,
    IoError = VIRTIO_BLK_S_IOERR as u8,
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// How a request ended: its status, and the bytes of data written into guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub status: Status,
    pub written: u32,
}

/// A piece of guest memory, not yet known to be RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Buffer {
    pub address: GuestAddress,
    pub length: u32,
}

/// One range of a discard or write-zeroes request (`struct virtio_blk_discard_write_zeroes`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub sector: u64,
    pub sectors: u32,
    pub unmap: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read { sector: u64, buffers: Vec<Buffer> },
    Write { sector: u64, buffers: Vec<Buffer> },
    Flush,
    GetId { buffers: Vec<Buffer> },
    Discard { ranges: Vec<Range> },
    WriteZeroes { ranges: Vec<Range> },
}

impl Request {
    /// Parses a chain. `None`: there is no byte for a status. Otherwise the request, or the status that it
    /// deserves for being none, and where its status byte is. How the driver has split the header, the data
    /// and the status into descriptors doesn't matter (§2.7.4.1).
    pub fn parse(chain: Chain) -> Option<(Result<Self, Status>, GuestAddress)> {
        let memory = chain.memory().clone();
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        // One more than fits is enough to know that it doesn't.
        for descriptor in chain.take(SEGMENTS_MAX as usize + 3) {
            let side = if descriptor.is_write_only() {
                &mut writable
            } else {
                &mut readable
            };
            side.push(Buffer {
                address: descriptor.addr(),
                length: descriptor.len(),
            });
        }
        let too_long = readable.len() + writable.len() > SEGMENTS_MAX as usize + 2;
        let status_at = take_last_byte(&mut writable)?;
        let request = if too_long {
            Err(Status::IoError)
        } else {
            Self::from_parts(&memory, readable, writable)
        };
        Some((request, status_at))
    }

    fn from_parts(
        memory: &Ram,
        mut readable: Vec<Buffer>,
        writable: Vec<Buffer>,
    ) -> Result<Self, Status> {
        let header: [u8; HEADER_BYTES] = take_front(memory, &mut readable)?;
        let (kind, sector) = split_header(header);
        match kind {
            VIRTIO_BLK_T_IN => Ok(Self::Read {
                sector,
                buffers: writable,
            }),
            VIRTIO_BLK_T_OUT => Ok(Self::Write {
                sector,
                buffers: readable,
            }),
            VIRTIO_BLK_T_FLUSH => Ok(Self::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Self::GetId { buffers: writable }),
            VIRTIO_BLK_T_DISCARD => Ok(Self::Discard {
                ranges: ranges(memory, readable, false)?,
            }),
            VIRTIO_BLK_T_WRITE_ZEROES => Ok(Self::WriteZeroes {
                ranges: ranges(memory, readable, true)?,
            }),
            _ => Err(Status::Unsupported),
        }
    }
}

fn split_header(header: [u8; HEADER_BYTES]) -> (u32, u64) {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    (
        u32::from_le_bytes([t0, t1, t2, t3]),
        u64::from_le_bytes(sector),
    )
}

/// All ranges of a request. Only write-zeroes may ask for `unmap`; other flags are unsupported (§5.2.6.2).
fn ranges(memory: &Ram, mut data: Vec<Buffer>, may_unmap: bool) -> Result<Vec<Range>, Status> {
    let mut ranges = Vec::new();
    while data.iter().any(|buffer| buffer.length > 0) {
        if ranges.len() == RANGES_MAX as usize {
            return Err(Status::IoError);
        }
        let bytes: [u8; RANGE_BYTES] = take_front(memory, &mut data)?;
        let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = bytes;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        if flags & !u32::from(may_unmap) != 0 {
            return Err(Status::Unsupported);
        }
        ranges.push(Range {
            sector: u64::from_le_bytes(sector),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            unmap: flags & 1 != 0,
        });
    }
    Ok(ranges)
}

/// Cuts the last byte off, which is the status; empty buffers after it are nothing.
fn take_last_byte(buffers: &mut Vec<Buffer>) -> Option<GuestAddress> {
    while buffers.last()?.length == 0 {
        buffers.pop();
    }
    let last = buffers.last_mut()?;
    last.length -= 1;
    let at = last.address.0.checked_add(u64::from(last.length))?;
    Some(GuestAddress(at))
}

/// Reads and cuts off the first `N` bytes, which may be spread over several buffers.
fn take_front<const N: usize>(memory: &Ram, buffers: &mut Vec<Buffer>) -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    let mut missing = &mut bytes[..];
    for buffer in buffers.iter_mut() {
        let length = missing.len().min(buffer.length as usize);
        let (now, later) = missing.split_at_mut(length);
        memory
            .read_slice(now, buffer.address)
            .map_err(|_| Status::IoError)?;
        missing = later;
        // It was read, so it is RAM, and `length` is no more than `buffer.length`.
        buffer.address = GuestAddress(buffer.address.0.wrapping_add(length as u64));
        buffer.length = buffer.length.saturating_sub(length as u32);
    }
    if !missing.is_empty() {
        return Err(Status::IoError);
    }
    buffers.retain(|buffer| buffer.length > 0);
    Ok(bytes)
}
