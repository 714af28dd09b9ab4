//! How much of the host a guest may hold through a share, and the process's share of descriptors.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most descriptors that inodes without an open file keep: enough for the directories and files in use at a time.
/// The kernel pays a KiB or two for each.
const PATHS_MAX: usize = 2048;
/// What the rest of the monitor may need: a socket for each of 1024 vsock connections, and then some.
const RESERVED: usize = 1280;
/// An inode costs the guest more than this of its own memory (its `struct fuse_inode` and `struct dentry`), so no guest
/// that really keeps what it looks up comes near the limit.
const GUEST_BYTES_PER_INODE: u64 = 1024;

/// The bounds of one share.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    /// Bytes of RAM that the guest has, which may change.
    ram: Arc<AtomicU64>,
    /// Descriptors of inodes beyond which idle ones are closed.
    pub paths: usize,
    /// Open files and directories. Each is a descriptor of its own and one of its inode.
    pub files: usize,
}

impl Limits {
    /// For a share that may hold so many descriptors, of a guest with so many bytes of RAM.
    pub fn new(descriptors: usize, ram: Arc<AtomicU64>) -> Self {
        let paths = (descriptors / 4).clamp(1, PATHS_MAX);
        Self {
            ram,
            paths,
            files: descriptors.saturating_sub(paths) / 2,
        }
    }

    /// Inodes that may be known now.
    pub fn inodes(&self) -> usize {
        let inodes = self.ram.load(Ordering::Relaxed) / GUEST_BYTES_PER_INODE;
        usize::try_from(inodes).unwrap_or(usize::MAX)
    }
}

/// Raises the process's limit of descriptors as far as the kernel lets us (`fs.nr_open` where we may raise the hard
/// limit, else that limit), and divides what the rest of the monitor doesn't need among so many shares.
pub fn descriptors_per_share(shares: usize) -> usize {
    let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    let hard = getrlimit(Resource::Nofile).maximum;
    let raise = |maximum| {
        let current = maximum;
        setrlimit(Resource::Nofile, Rlimit { current, maximum })
    };
    if let Err(error) = raise(ceiling.max(hard)).or_else(|_| raise(hard)) {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
    let limit = getrlimit(Resource::Nofile).current;
    let limit = limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    });
    limit.saturating_sub(RESERVED.min(limit / 2)) / shares.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_share_may_open_is_within_its_descriptors() {
        for descriptors in [4, 5, 100, 1024, 20_000, 1 << 20] {
            let limits = Limits::new(descriptors, Arc::default());
            assert!(limits.paths + 2 * limits.files <= descriptors);
            assert!(limits.paths > 0 && limits.files > 0);
        }
    }
}
