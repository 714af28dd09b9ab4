//! The file system device, virtio 1.2 §5.11: a host directory served to the guest by FUSE, in this process.
//!
//! ```text
//! Fs (registers) ── activate ──► Handler ─ chain ─► request::Session ─┬─ fuse-backend-rs's server ─► share::Share
//!                                                                     └─ what that doesn't know ───► share, dax
//! ```
//!
//! What a guest can make a share hold is bounded, and beyond the bound it gets ENFILE:
//!
//! - inodes known to the guest: one for each KiB of its RAM, at up to 300 bytes each. It can't keep more itself.
//! - descriptors: [`FsConfig::descriptors`]. A quarter of them, at most 2048, is for inodes, of which the idle ones are
//!   closed and reopened; of the rest an open file or directory takes two.
//!
//! It also keeps mounts busy that its inodes lie on: the host must unmount them lazily.

mod dax;
mod limits;
mod request;
mod share;
mod statx;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{CWD, Mode, OFlags};

pub use dax::{DAX_GRANULE, DaxMapper, DaxWindow};
pub use limits::descriptors_per_share;

use crate::device::{
    ActivateError, Activation, Event, GuestRam, Handler, Profile, Served, SharedMemory,
    VirtioDevice,
};
use crate::queue::Virtqueue;
use limits::Limits;
use request::Session;
use share::Share;

/// File system device (virtio 1.2 §5).
const DEVICE_ID: u32 = 26;
/// Length of the tag in configuration space (§5.11.4).
const TAG_LENGTH: usize = 36;
/// hiprio and one request queue (§5.11.2), without a notification queue. A request of 1 MiB takes 257 descriptors and
/// more, so the request queue holds a few of them.
const QUEUE_SIZES: [u16; 2] = [128, 1024];

/// What a file system device is made from.
pub struct FsConfig {
    /// The name that the guest mounts by: 1 to 36 bytes of UTF-8.
    pub tag: String,
    /// The directory to share. Links in the path are followed once, now.
    pub root: PathBuf,
    /// The DAX window, if there is one.
    pub dax: Option<DaxWindow>,
    /// The most descriptors that the guest may hold through this share: see [`descriptors_per_share`].
    pub descriptors: usize,
    /// Bytes of RAM that the guest has. The inodes that it may know of the share depend on it, as it changes.
    pub ram: Arc<AtomicU64>,
}

/// Why a directory can't be shared.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// Empty, or longer than configuration space has room for, or with a NUL.
    #[error("virtio-fs tag {0:?} is not 1 to 36 bytes without NUL")]
    Tag(String),
    /// Not a whole number of granules, which are 2 MiB.
    #[error("the DAX window's length {0} is not a multiple of 2 MiB")]
    Window(u64),
    /// The root is missing or not a directory.
    #[error("open shared directory {root}")]
    Root {
        /// The path as given.
        root: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// /proc isn't mounted.
    #[error("open /proc/self/fd")]
    Proc(#[source] io::Error),
}

/// The file system device.
pub struct Fs {
    tag: [u8; TAG_LENGTH],
    root: Arc<OwnedFd>,
    proc_fds: Arc<OwnedFd>,
    dax: Option<DaxWindow>,
    descriptors: usize,
    ram: Arc<AtomicU64>,
}

impl Fs {
    /// Opens the directory.
    ///
    /// This changes the whole process: its umask becomes 0, because the guest's kernel has applied the guest's. Whoever
    /// else makes files names their mode.
    ///
    /// # Errors
    /// See [`FsError`].
    pub fn new(config: FsConfig) -> Result<Self, FsError> {
        let tag = padded_tag(&config.tag).ok_or(FsError::Tag(config.tag))?;
        if let Some(dax) = &config.dax
            && (dax.length == 0 || !dax.length.is_multiple_of(DAX_GRANULE))
        {
            return Err(FsError::Window(dax.length));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, &config.root, flags, Mode::empty());
        let root = root.map_err(|e| FsError::Root {
            root: config.root,
            source: e.into(),
        })?;
        let proc_fds = rustix::fs::openat(CWD, c"/proc/self/fd", flags, Mode::empty())
            .map_err(|e| FsError::Proc(e.into()))?;
        rustix::process::umask(Mode::empty());
        Ok(Self {
            tag,
            root: Arc::new(root),
            proc_fds: Arc::new(proc_fds),
            dax: config.dax,
            descriptors: config.descriptors,
            ram: config.ram,
        })
    }
}

impl VirtioDevice for Fs {
    fn profile(&self) -> Profile {
        let window = self.dax.as_ref().map(|dax| SharedMemory {
            id: 0,
            base: dax.base,
            length: dax.length,
        });
        Profile {
            device_id: DEVICE_ID,
            name: "fs",
            features: 0,
            queue_sizes: QUEUE_SIZES.to_vec(),
            shared_memory: window.into_iter().collect(),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let request_queues = 1u32.to_le_bytes();
        let mut fields = self.tag.iter().chain(&request_queues);
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = fields.by_ref().skip(skip);
        data.fill_with(|| rest.next().copied().unwrap_or(0));
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        if let Some(missing) = activation.queues.iter().position(|q| !q.is_enabled()) {
            return Err(ActivateError::QueueMissing(missing));
        }
        let limits = Limits::new(self.descriptors, self.ram.clone());
        let share =
            Share::new(self.root.clone(), self.proc_fds.clone(), limits).map_err(|source| {
                ActivateError::Host {
                    what: "examine the shared directory",
                    source,
                }
            })?;
        Ok(Box::new(FsHandler {
            session: Session::new(share, self.dax.clone()),
            memory: activation.memory,
            queues: activation.queues,
            dax: self.dax.clone(),
        }))
    }
}

/// The device at work. Requests are served one after another, where they are found.
struct FsHandler {
    session: Session,
    memory: GuestRam,
    queues: Vec<Virtqueue>,
    dax: Option<DaxWindow>,
}

impl Handler for FsHandler {
    fn serve(&mut self, event: Event) -> Served {
        let Event::Queue(index) = event else {
            return Served::Done;
        };
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Served::Done;
        };
        queue.serve("fs", |chain| self.session.serve(&self.memory, chain))
    }
}

impl Drop for FsHandler {
    fn drop(&mut self) {
        if let Some(dax) = &self.dax {
            dax.clear();
        }
    }
}

fn padded_tag(tag: &str) -> Option<[u8; TAG_LENGTH]> {
    let mut padded = [0; TAG_LENGTH];
    let bytes = tag.as_bytes();
    if bytes.is_empty() || bytes.contains(&0) {
        return None;
    }
    padded.get_mut(..bytes.len())?.copy_from_slice(bytes);
    Some(padded)
}
