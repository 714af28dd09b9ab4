//! The inodes that the guest knows, and the few of them that have a descriptor.
//!
//! A guest forgets an inode when it is short of memory and not before, so a `find` over a million files makes it know a
//! million. Each costs up to 300 bytes here; descriptors only the inodes used lately, and those with an open file. The
//! others are reopened from where they were found: by name, beneath their parent, never through a symbolic link, and only
//! if what is there is still the same inode. If it isn't, the guest gets ESTALE, upon which its kernel looks names up
//! again.
//!
//! File handles (name_to_handle_at(2)) would survive a rename by others, but want CAP_DAC_READ_SEARCH, which lets a
//! process open any file of the file system, and overlayfs, which most roots are, has none unless it is mounted with
//! `nfs_export=on`.

use std::collections::{HashMap, VecDeque};
use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use fuse_backend_rs::api::filesystem::ROOT_ID;

use super::error;
use crate::fs::limits::Limits;

/// How many inodes are looked at to find one whose descriptor can be closed, unless there is no other way.
const TRIES: usize = 64;

/// What makes two names the same inode. The mount counts: the same file may be visible through a read-only and a
/// read-write mount, and an inode must never be opened through another mount than the one it was looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct InodeKey {
    pub device: (u32, u32),
    pub inode: u64,
    pub mount: u64,
}

/// What a descriptor turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub key: InodeKey,
    /// File type, S_IFMT bits.
    pub kind: u32,
}

/// An inode to work with. While a clone of its `O_PATH` descriptor lives, the inode keeps it.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub node: u64,
    pub fd: Arc<OwnedFd>,
    pub identity: Identity,
}

/// What [`Inodes::get`] finds.
#[derive(Debug)]
pub(super) enum Found {
    Open(Inode),
    /// It has no descriptor; this is its parent.
    Closed(u64),
}

/// Where an inode was found last: only a hint.
#[derive(Debug)]
struct Place {
    parent: u64,
    name: Box<CStr>,
}

#[derive(Debug)]
struct Known {
    identity: Identity,
    lookups: u64,
    /// None for the root and for files without a name: they can't be reopened, so they keep their descriptor.
    place: Option<Place>,
    fd: Option<Arc<OwnedFd>>,
    /// Used since its descriptor was last considered for closing.
    used: bool,
}

/// Every inode with a non-zero lookup count.
#[derive(Debug)]
pub(super) struct Inodes {
    limits: Limits,
    next: u64,
    known: HashMap<u64, Known>,
    by_key: HashMap<InodeKey, u64>,
    /// How many have a descriptor.
    descriptors: usize,
    /// Which, in the order in which they are considered for closing. Nodes that were forgotten are passed over.
    open: VecDeque<u64>,
}

impl Inodes {
    /// Only the root, which is never forgotten.
    pub fn new(limits: Limits, fd: OwnedFd, identity: Identity) -> Self {
        let root = Known {
            identity,
            lookups: 1,
            place: None,
            fd: Some(Arc::new(fd)),
            used: true,
        };
        Self {
            limits,
            next: ROOT_ID + 1,
            known: HashMap::from([(ROOT_ID, root)]),
            by_key: HashMap::from([(identity.key, ROOT_ID)]),
            descriptors: 1,
            open: VecDeque::from([ROOT_ID]),
        }
    }

    /// What the table has of `node`; ESTALE if the guest doesn't know it.
    pub fn get(&mut self, node: u64) -> io::Result<Found> {
        let known = self.known.get_mut(&node).ok_or_else(stale)?;
        known.used = true;
        match (&known.fd, &known.place) {
            (Some(fd), _) => Ok(Found::Open(Inode {
                node,
                fd: fd.clone(),
                identity: known.identity,
            })),
            (None, Some(place)) => Ok(Found::Closed(place.parent)),
            (None, None) => Err(stale()),
        }
    }

    /// The name under which `node` was found last.
    pub fn name(&self, node: u64) -> io::Result<&CStr> {
        let place = self.known.get(&node).and_then(|k| k.place.as_ref());
        place.map(|place| &*place.name).ok_or_else(stale)
    }

    /// Gives `node` a descriptor again; ESTALE if that is of another inode.
    pub fn reopen(&mut self, node: u64, fd: OwnedFd, identity: Identity) -> io::Result<Inode> {
        self.make_room()?;
        let known = self.known.get_mut(&node).ok_or_else(stale)?;
        if known.identity != identity {
            return Err(stale());
        }
        let fd = Arc::new(fd);
        if known.fd.replace(fd.clone()).is_none() {
            self.descriptors += 1;
            self.open.push_back(node);
        }
        Ok(Inode { node, fd, identity })
    }

    /// Refuses with ENFILE what would make one inode too many known.
    pub fn check_room(&self) -> io::Result<()> {
        if self.known.len() >= self.limits.inodes() {
            return Err(error(libc::ENFILE));
        }
        Ok(())
    }

    /// Adds one to the lookup count of the inode that `fd` is, and makes it known if it is new. It was found at `place`:
    /// parent and name.
    ///
    /// # Errors
    /// ENFILE: one inode or one descriptor too many.
    pub fn look_up(
        &mut self,
        fd: OwnedFd,
        identity: Identity,
        place: Option<(u64, &CStr)>,
    ) -> io::Result<u64> {
        if let Some(&node) = self.by_key.get(&identity.key) {
            self.move_to(node, place);
            if let Some(known) = self.known.get_mut(&node) {
                known.lookups = known.lookups.saturating_add(1);
                known.used = true;
                // The kind is part of the number: one that was used again is another inode.
                known.identity = identity;
                if known.fd.is_some() {
                    return Ok(node);
                }
            }
            self.reopen(node, fd, identity).inspect_err(|_| {
                self.forget(node, 1);
            })?;
            return Ok(node);
        }
        self.check_room()?;
        self.make_room()?;
        let node = self.next;
        self.next += 1;
        let known = Known {
            identity,
            lookups: 1,
            place: place.map(Place::new),
            fd: Some(Arc::new(fd)),
            used: false,
        };
        self.known.insert(node, known);
        self.by_key.insert(identity.key, node);
        self.descriptors += 1;
        self.open.push_back(node);
        Ok(node)
    }

    /// What has this key, if the guest knows it, is at `place` now.
    pub fn moved(&mut self, key: InodeKey, place: (u64, &CStr)) {
        if let Some(&node) = self.by_key.get(&key) {
            self.move_to(node, Some(place));
        }
    }

    fn move_to(&mut self, node: u64, place: Option<(u64, &CStr)>) {
        let (Some(known), Some(new)) = (self.known.get_mut(&node), place) else {
            return;
        };
        let same = |old: &Place| (old.parent, &*old.name) == new;
        if node != ROOT_ID && !known.place.as_ref().is_some_and(same) {
            known.place = Some(Place::new(new));
        }
    }

    /// Takes `count` off the lookup count.
    pub fn forget(&mut self, node: u64, count: u64) {
        if node == ROOT_ID {
            return;
        }
        let Some(known) = self.known.get_mut(&node) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups == 0
            && let Some(known) = self.known.remove(&node)
        {
            self.by_key.remove(&known.identity.key);
            self.descriptors -= usize::from(known.fd.is_some());
            if self.open.len() > 2 * self.descriptors + TRIES {
                self.open.retain(|node| self.known.contains_key(node));
            }
        }
    }

    /// Closes descriptors that were not used lately and that no open file holds, until one more is within the limit.
    fn make_room(&mut self) -> io::Result<()> {
        let most = self.limits.paths.saturating_add(self.limits.files);
        let mut tries = match self.descriptors >= most {
            // Twice around: the first time clears `used`.
            true => 2 * self.open.len(),
            false => TRIES,
        };
        while self.descriptors >= self.limits.paths && tries > 0 {
            tries -= 1;
            let Some(node) = self.open.pop_front() else {
                break;
            };
            let Some(known) = self.known.get_mut(&node) else {
                continue;
            };
            let held = known
                .fd
                .as_ref()
                .is_some_and(|fd| Arc::strong_count(fd) > 1);
            if std::mem::take(&mut known.used) || held || known.place.is_none() {
                self.open.push_back(node);
            } else if known.fd.take().is_some() {
                self.descriptors -= 1;
            }
        }
        if self.descriptors >= most {
            return Err(error(libc::ENFILE));
        }
        Ok(())
    }
}

impl Place {
    fn new((parent, name): (u64, &CStr)) -> Self {
        Self {
            parent,
            name: name.into(),
        }
    }
}

pub(super) fn stale() -> io::Error {
    error(libc::ESTALE)
}
