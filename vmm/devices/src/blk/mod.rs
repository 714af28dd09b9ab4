//! The block device (virtio 1.2 §5.2): a raw file or block device of the host as a disk.

mod disk;
mod request;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use vm_memory::Bytes;

use crate::device::{ActivateError, Activation, Event, Handler, Profile, Served, VirtioDevice};
use crate::queue::{Chain, Virtqueue};
use crate::ram::Ram;
use disk::Disk;
use request::{Outcome, Request, Status};

/// The unit of every sector number and count (§5.2.4), and the logical block size.
pub const SECTOR_BYTES: u64 = 512;

const DEVICE_ID: u32 = 2;
const REQUEST_QUEUE: usize = 0;
const QUEUE_SIZE: u16 = 256;
/// A physical block is a page of the host's page cache, 2^3 sectors: writes of whole ones never read first. This is
/// advice (VIRTIO_BLK_F_TOPOLOGY). As VIRTIO_BLK_F_BLK_SIZE it would be the guest's logical block size, and images
/// with 512-byte sectors (partition tables, vfat, ext4 with 1 KiB blocks, an odd tail) could not be used.
const PHYSICAL_BLOCK_EXP: u8 = 3;
const PHYSICAL_BLOCK_SECTORS: u16 = 1 << PHYSICAL_BLOCK_EXP;
/// Data segments of one request; header and status come on top and must fit the ring.
const SEGMENTS_MAX: u32 = 254;
/// Bytes of one data segment. Without a limit a single request could name 4 GiB and keep the worker from its other duties
/// for as long as the host takes for them; so it is 63.5 MiB. Linux doesn't send more than 1280 KiB unless it is told to.
const SEGMENT_BYTES_MAX: u32 = 256 << 10;
/// Sectors of one discard or write-zeroes range: 1 GiB.
const RANGE_SECTORS_MAX: u32 = 1 << 21;
/// Ranges of one discard or write-zeroes request.
const RANGES_MAX: u32 = 16;

/// The device before activation.
pub struct Blk {
    disk: Arc<Mutex<Disk>>,
    read_only: bool,
    config: [u8; 60],
}

impl Blk {
    /// A disk of the size that `file` has now, in whole sectors. The device moves the file's offset, so its
    /// open file description must belong to it alone. `serial` is cut to 20 bytes (§5.2.6.1, GET_ID).
    ///
    /// # Errors
    /// The size can't be found out.
    pub fn new(file: File, read_only: bool, serial: &str) -> io::Result<Self> {
        let disk = Disk::new(file, read_only, serial)?;
        Ok(Self {
            config: config_space(disk.sectors()),
            read_only,
            disk: Arc::new(Mutex::new(disk)),
        })
    }
}

impl VirtioDevice for Blk {
    fn profile(&self) -> Profile {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        let features = if self.read_only {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        };
        Profile {
            device_id: DEVICE_ID,
            name: "blk",
            features,
            queue_sizes: vec![QUEUE_SIZE],
            shared_memory: Vec::new(),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let queue = activation
            .queues
            .into_iter()
            .nth(REQUEST_QUEUE)
            .filter(Virtqueue::is_enabled)
            .ok_or(ActivateError::QueueMissing(REQUEST_QUEUE))?;
        Ok(Box::new(BlkHandler {
            queue,
            disk: self.disk.clone(),
            // §5.2.6.2: a driver that can't flush takes every completed write for stable.
            write_through: activation.features & (1 << VIRTIO_BLK_F_FLUSH) == 0,
        }))
    }
}

/// `struct virtio_blk_config` (§5.2.4).
fn config_space(sectors: u64) -> [u8; 60] {
    let mut config = [0; 60];
    let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &sectors.to_le_bytes());
    put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
    put(12, &SEGMENTS_MAX.to_le_bytes());
    // topology: physical_block_exp, (alignment_offset,) min_io_size in sectors.
    put(24, &[PHYSICAL_BLOCK_EXP]);
    put(26, &PHYSICAL_BLOCK_SECTORS.to_le_bytes());
    // num_queues; read only with VIRTIO_BLK_F_MQ, but true all the same.
    put(34, &1u16.to_le_bytes());
    put(36, &RANGE_SECTORS_MAX.to_le_bytes());
    put(40, &RANGES_MAX.to_le_bytes());
    put(44, &u32::from(PHYSICAL_BLOCK_SECTORS).to_le_bytes());
    put(48, &RANGE_SECTORS_MAX.to_le_bytes());
    put(52, &RANGES_MAX.to_le_bytes());
    put(56, &[1]);
    config
}

struct BlkHandler {
    queue: Virtqueue,
    disk: Arc<Mutex<Disk>>,
    write_through: bool,
}

impl Handler for BlkHandler {
    fn serve(&mut self, _event: Event) -> Served {
        let mut disk = lock(&self.disk);
        let write_through = self.write_through;
        self.queue
            .serve("blk", |chain| serve(chain, &mut disk, write_through))
    }
}

/// Only one handler exists at a time, so this never waits.
fn lock(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one request and writes its status; returns the bytes written.
fn serve(chain: Chain, disk: &mut Disk, write_through: bool) -> u32 {
    let memory = chain.memory().clone();
    let Some((request, status_at)) = Request::parse(chain) else {
        // There is no place to say so: the driver sees a used length of zero.
        return 0;
    };
    let Outcome { status, written } = match request {
        Ok(request) => execute(&memory, &request, disk, write_through),
        Err(status) => Outcome { status, written: 0 },
    };
    match memory.write_obj(status as u8, status_at) {
        Ok(()) => written.saturating_add(1),
        Err(_) => 0,
    }
}

fn execute(memory: &Ram, request: &Request, disk: &mut Disk, write_through: bool) -> Outcome {
    let result = match request {
        Request::Read { sector, buffers } => disk.read(memory, *sector, buffers),
        Request::Write { sector, buffers } => disk
            .write(memory, *sector, buffers)
            .and_then(|()| if write_through { disk.flush() } else { Ok(()) })
            .map(|()| 0),
        Request::Flush => disk.flush().map(|()| 0),
        Request::GetId { buffers } => disk.identify(memory, buffers),
        Request::Discard { ranges } => disk.discard(ranges).map(|()| 0),
        Request::WriteZeroes { ranges } => disk
            .write_zeroes(ranges)
            .and_then(|()| if write_through { disk.flush() } else { Ok(()) })
            .map(|()| 0),
    };
    match result {
        Ok(written) => Outcome {
            status: Status::Ok,
            written,
        },
        Err(e) => {
            tracing::debug!(error = %e, "block request failed");
            Outcome {
                status: e.status(),
                written: 0,
            }
        }
    }
}

#[cfg(test)]
mod tests;
