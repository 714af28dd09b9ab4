//! What the guest holds on to: inodes it has looked up and files it has open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fuse_backend_rs::api::filesystem::ROOT_ID;

/// What makes two names the same inode. The mount counts: the same file may be visible through a read-only and a
/// read-write mount, and an inode must never be opened through another mount than the one it was looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct InodeKey {
    pub device: (u32, u32),
    pub inode: u64,
    pub mount: u64,
}

/// An inode the guest knows. The `O_PATH` descriptor pins it, so that its number can't be used again meanwhile.
#[derive(Debug)]
pub(super) struct Inode {
    pub node: u64,
    pub fd: OwnedFd,
    pub key: InodeKey,
    /// File type, S_IFMT bits.
    pub kind: u32,
}

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    pub node: u64,
    pub file: Mutex<OpenFile>,
}

/// The file of a handle and whether it is in append mode just now.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub file: File,
    pub append: bool,
}

/// Every inode with a non-zero lookup count.
#[derive(Debug)]
pub(super) struct Inodes {
    next: u64,
    by_node: HashMap<u64, (Arc<Inode>, u64)>,
    by_key: HashMap<InodeKey, u64>,
}

impl Inodes {
    /// Only the root, which is never forgotten.
    pub fn new(fd: OwnedFd, key: InodeKey, kind: u32) -> Self {
        let root = Arc::new(Inode {
            node: ROOT_ID,
            fd,
            key,
            kind,
        });
        Self {
            next: ROOT_ID + 1,
            by_node: HashMap::from([(ROOT_ID, (root, 1))]),
            by_key: HashMap::from([(key, ROOT_ID)]),
        }
    }

    pub fn get(&self, node: u64) -> io::Result<Arc<Inode>> {
        self.by_node
            .get(&node)
            .map(|(inode, _)| inode.clone())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESTALE))
    }

    /// Adds one to the lookup count of the inode that has `key`, which it makes from `fd` if it is new.
    pub fn look_up(&mut self, fd: OwnedFd, key: InodeKey, kind: u32) -> u64 {
        if let Some(node) = self.by_key.get(&key)
            && let Some((_, lookups)) = self.by_node.get_mut(node)
        {
            *lookups = lookups.saturating_add(1);
            return *node;
        }
        let node = self.next;
        self.next += 1;
        let inode = Arc::new(Inode {
            node,
            fd,
            key,
            kind,
        });
        self.by_node.insert(node, (inode, 1));
        self.by_key.insert(key, node);
        node
    }

    /// Takes `count` off the lookup count.
    pub fn forget(&mut self, node: u64, count: u64) {
        if node == ROOT_ID {
            return;
        }
        let Some((inode, lookups)) = self.by_node.get_mut(&node) else {
            return;
        };
        *lookups = lookups.saturating_sub(count);
        if *lookups == 0 {
            let key = inode.key;
            self.by_node.remove(&node);
            self.by_key.remove(&key);
        }
    }
}

/// Every open file.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: u64,
    open: HashMap<u64, Arc<Handle>>,
}

impl Handles {
    pub fn insert(&mut self, node: u64, file: File, append: bool) -> u64 {
        self.next += 1;
        let file = Mutex::new(OpenFile { file, append });
        self.open.insert(self.next, Arc::new(Handle { node, file }));
        self.next
    }

    /// The handle, which must be one of this inode.
    pub fn get(&self, handle: u64, node: u64) -> io::Result<Arc<Handle>> {
        self.open
            .get(&handle)
            .filter(|open| open.node == node)
            .cloned()
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }

    pub fn remove(&mut self, handle: u64, node: u64) -> io::Result<()> {
        self.get(handle, node)?;
        self.open.remove(&handle);
        Ok(())
    }
}

/// A panic elsewhere leaves these tables whole: each change is one insertion or removal.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
