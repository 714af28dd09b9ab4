//! What is behind a block device: a file, and guest memory that is read into and written from in place.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use nix::fcntl::{FallocateFlags, fallocate};
use vm_memory::{Bytes, GuestMemory, ReadVolatile, VolatileMemoryError, WriteVolatile};

use super::request::{Buffer, Range, Status};
use super::{RANGE_SECTORS_MAX, SECTOR_BYTES, SEGMENT_BYTES_MAX, SEGMENTS_MAX};
use crate::ram::Ram;

/// Length of the answer to GET_ID (§5.2.6.1).
const ID_BYTES: usize = 20;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DiskError {
    /// Not whole sectors, or beyond the end, or more than was announced.
    #[error("outside of the disk")]
    OutOfBounds,
    /// The driver was told that it can't write.
    #[error("the disk is read-only")]
    ReadOnly,
    /// A buffer is not in RAM.
    #[error("a buffer is outside of RAM")]
    BadBuffer,
    /// The file said so.
    #[error(transparent)]
    File(#[from] io::Error),
}

impl DiskError {
    /// What the driver is told. The host's reasons stay on the host.
    pub fn status(&self) -> Status {
        match self {
            Self::File(e) if e.kind() == io::ErrorKind::Unsupported => Status::Unsupported,
            Self::OutOfBounds | Self::ReadOnly | Self::BadBuffer | Self::File(_) => Status::IoError,
        }
    }
}

/// The file, its size at start, and where its offset is.
pub(super) struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    id: [u8; ID_BYTES],
    /// Reads and writes go by the file's own offset: that is what vm-memory can do in place, and it saves the
    /// seek for sequential requests. `None` after a failure.
    offset: Option<u64>,
}

impl Disk {
    pub fn new(mut file: File, read_only: bool, serial: &str) -> io::Result<Self> {
        // Works for block devices too, whose metadata says 0.
        let bytes = file.seek(SeekFrom::End(0))?;
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Ok(Self {
            file,
            sectors: bytes / SECTOR_BYTES,
            read_only,
            id,
            offset: None,
        })
    }

    /// Capacity in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Reads into `buffers`, returns the number of bytes.
    pub fn read(
        &mut self,
        memory: &Ram,
        sector: u64,
        buffers: &[Buffer],
    ) -> Result<u32, DiskError> {
        let length = self.prepare(memory, sector, buffers)?;
        self.transfer(memory, sector, buffers, |mut file, slice| {
            file.read_exact_volatile(slice)
        })?;
        Ok(length)
    }

    /// Writes `buffers`.
    pub fn write(
        &mut self,
        memory: &Ram,
        sector: u64,
        buffers: &[Buffer],
    ) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        self.prepare(memory, sector, buffers)?;
        self.transfer(memory, sector, buffers, |mut file, slice| {
            file.write_all_volatile(slice)
        })
    }

    /// Makes everything written before stable.
    pub fn flush(&self) -> Result<(), DiskError> {
        if self.read_only {
            return Ok(());
        }
        Ok(self.file.sync_data()?)
    }

    /// Writes the serial number into `buffers`, which must have room for all 20 bytes; returns 20.
    pub fn identify(&self, memory: &Ram, buffers: &[Buffer]) -> Result<u32, DiskError> {
        let mut rest = &self.id[..];
        for buffer in buffers {
            let (now, later) = rest.split_at(rest.len().min(buffer.length as usize));
            memory
                .write_slice(now, buffer.address)
                .map_err(|_| DiskError::BadBuffer)?;
            rest = later;
        }
        if rest.is_empty() {
            Ok(ID_BYTES as u32)
        } else {
            Err(DiskError::BadBuffer)
        }
    }

    /// Gives the space of `ranges` back to the host's file system (§5.2.6.2: a hint).
    pub fn discard(&self, ranges: &[Range]) -> Result<(), DiskError> {
        self.punch(ranges, |_| FallocateFlags::FALLOC_FL_PUNCH_HOLE)
    }

    /// Makes `ranges` read as zero.
    pub fn write_zeroes(&self, ranges: &[Range]) -> Result<(), DiskError> {
        self.punch(ranges, |range| {
            if range.unmap {
                FallocateFlags::FALLOC_FL_PUNCH_HOLE
            } else {
                FallocateFlags::FALLOC_FL_ZERO_RANGE
            }
        })
    }

    fn punch(
        &self,
        ranges: &[Range],
        how: impl Fn(&Range) -> FallocateFlags,
    ) -> Result<(), DiskError> {
        if self.read_only {
            return Err(DiskError::ReadOnly);
        }
        // All or nothing: check before the first is changed.
        for range in ranges {
            if range.sectors > RANGE_SECTORS_MAX {
                return Err(DiskError::OutOfBounds);
            }
            self.check(range.sector, u64::from(range.sectors))?;
        }
        for range in ranges.iter().filter(|range| range.sectors > 0) {
            let from = file_offset(range.sector * SECTOR_BYTES)?;
            let length = file_offset(u64::from(range.sectors) * SECTOR_BYTES)?;
            fallocate(
                &self.file,
                how(range) | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                from,
                length,
            )
            .map_err(io::Error::from)?;
        }
        Ok(())
    }

    /// Checks a transfer as a whole before its first byte; returns its length.
    fn prepare(&self, memory: &Ram, sector: u64, buffers: &[Buffer]) -> Result<u32, DiskError> {
        let mut length = 0u32;
        for buffer in buffers {
            if buffer.length > 0 && !memory.check_range(buffer.address, buffer.length as usize) {
                return Err(DiskError::BadBuffer);
            }
            length = length
                .checked_add(buffer.length)
                .ok_or(DiskError::OutOfBounds)?;
        }
        // The sum and not each segment: a driver that didn't take VIRTIO_BLK_F_SIZE_MAX may cut as it likes.
        if length > SEGMENTS_MAX * SEGMENT_BYTES_MAX || u64::from(length) % SECTOR_BYTES != 0 {
            return Err(DiskError::OutOfBounds);
        }
        self.check(sector, u64::from(length) / SECTOR_BYTES)?;
        Ok(length)
    }

    fn check(&self, sector: u64, count: u64) -> Result<(), DiskError> {
        match sector.checked_add(count) {
            Some(end) if end <= self.sectors => Ok(()),
            _ => Err(DiskError::OutOfBounds),
        }
    }

    fn transfer(
        &mut self,
        memory: &Ram,
        sector: u64,
        buffers: &[Buffer],
        one: impl Fn(&File, &mut vm_memory::VolatileSlice<'_>) -> Result<(), VolatileMemoryError>,
    ) -> Result<(), DiskError> {
        let start = sector * SECTOR_BYTES;
        if self.offset.take() != Some(start) {
            self.file.seek(SeekFrom::Start(start))?;
        }
        let mut end = start;
        for buffer in buffers {
            for slice in memory.get_slices(buffer.address, buffer.length as usize) {
                let mut slice = slice.map_err(|_| DiskError::BadBuffer)?;
                one(&self.file, &mut slice).map_err(file_error)?;
                end += slice.len() as u64;
            }
        }
        self.offset = Some(end);
        Ok(())
    }
}

fn file_error(e: VolatileMemoryError) -> DiskError {
    match e {
        VolatileMemoryError::IOError(e) => DiskError::File(e),
        other => DiskError::File(io::Error::other(other)),
    }
}

fn file_offset(bytes: u64) -> Result<i64, DiskError> {
    i64::try_from(bytes).map_err(|_| DiskError::OutOfBounds)
}
