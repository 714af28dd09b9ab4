//! The files and directories that the guest has open.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use super::error;
use super::inodes::Inode;

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    pub node: u64,
    pub file: Mutex<OpenFile>,
    /// Its inode keeps its descriptor meanwhile: an unlinked file has no other way back.
    _inode: Arc<OwnedFd>,
}

/// The file of a handle and whether it is in append mode just now.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub file: File,
    pub append: bool,
}

/// Every open file.
#[derive(Debug)]
pub(super) struct Handles {
    limit: usize,
    next: u64,
    open: HashMap<u64, Arc<Handle>>,
}

impl Handles {
    /// None yet, and never more than `limit`.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            next: 0,
            open: HashMap::new(),
        }
    }

    /// Refuses with ENFILE what would be one handle too many. To be asked before something is opened or made.
    pub fn check_room(&self) -> io::Result<()> {
        if self.open.len() >= self.limit {
            return Err(error(libc::ENFILE));
        }
        Ok(())
    }

    /// Adds an open file of `inode`.
    ///
    /// # Errors
    /// As [`Handles::check_room`].
    pub fn insert(&mut self, inode: &Inode, file: File, append: bool) -> io::Result<u64> {
        self.check_room()?;
        self.next += 1;
        let handle = Handle {
            node: inode.node,
            file: Mutex::new(OpenFile { file, append }),
            _inode: inode.fd.clone(),
        };
        self.open.insert(self.next, Arc::new(handle));
        Ok(self.next)
    }

    /// The handle, which must be one of this inode.
    pub fn get(&self, handle: u64, node: u64) -> io::Result<Arc<Handle>> {
        self.open
            .get(&handle)
            .filter(|open| open.node == node)
            .cloned()
            .ok_or_else(|| error(libc::EBADF))
    }

    pub fn remove(&mut self, handle: u64, node: u64) -> io::Result<()> {
        self.get(handle, node)?;
        self.open.remove(&handle);
        Ok(())
    }
}
