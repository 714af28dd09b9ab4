//! The file system device, virtio 1.2 §5.11: a host directory served to the guest by FUSE, in this process.
//!
//! ```text
//! Fs (registers) ── activate ──► Handler ─ chain ─► request::Session ─┬─ fuse-backend-rs's server ─► share::Share
//!                                                                     └─ what that doesn't know ───► share, dax
//! ```
//!
//! A guest holds on to descriptors here: one for each inode in its cache and one for each open file. The only bound is
//! RLIMIT_NOFILE, which [`Fs::new`] raises; beyond it the guest gets EMFILE, and the monitor must not need descriptors.
//! It also keeps mounts busy that its inodes lie on: the host must unmount them lazily.

mod dax;
mod request;
mod share;
mod statx;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use dax::{DAX_GRANULE, DaxMapper, DaxWindow};

use crate::device::{
    ActivateError, Activation, Event, GuestRam, Handler, Profile, Served, SharedMemory,
    VirtioDevice,
};
use crate::queue::Virtqueue;
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
}

impl Fs {
    /// Opens the directory.
    ///
    /// This changes two things of the whole process. The umask becomes 0, because the guest's kernel has applied the
    /// guest's; whoever else makes files names their mode. The soft limit of descriptors becomes the hard one.
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
        raise_descriptor_limit();
        Ok(Self {
            tag,
            root: Arc::new(root),
            proc_fds: Arc::new(proc_fds),
            dax: config.dax,
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
        let share = Share::new(self.root.clone(), self.proc_fds.clone()).map_err(|source| {
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
        match queue.drain(|chain| self.session.serve(&self.memory, chain)) {
            Ok(()) => Served::Done,
            Err(error) => {
                if queue.may_warn() {
                    tracing::warn!(%error, "the guest broke a virtio-fs queue");
                }
                Served::Broken
            }
        }
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

/// As high as the kernel lets us: `fs.nr_open` where we may raise the hard limit, else that limit.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let highest = [ceiling.max(limit.maximum), limit.maximum];
    let raise = |maximum| {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: maximum,
                maximum,
            },
        )
    };
    if let Err(error) = raise(highest[0]).or_else(|_| raise(highest[1])) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}
