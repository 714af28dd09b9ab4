//! Reading directories.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;

use fuse_backend_rs::api::filesystem::{DirEntry, Entry};
use rustix::fs::{FileType, RawDir};

use super::inodes::Inode;
use super::{Share, lock};

/// The most that is read from the host at once, whatever the guest asks for.
const READ_MAX: usize = 32 << 10;

impl Share {
    /// FUSE_READDIR: gives `add` entries from `offset` on until it takes no more (returns 0).
    pub(super) fn read_directory(
        &self,
        inode: &Inode,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, &CStr) -> io::Result<usize>,
    ) -> io::Result<()> {
        let handle = lock(&self.handles).get(handle, inode.node)?;
        let open = lock(&handle.file);
        // A cookie is the host file system's own; one it doesn't know is its error to give.
        rustix::fs::seek(&open.file, rustix::fs::SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); READ_MAX];
        let limit = (size as usize).min(READ_MAX);
        let Some(buffer) = buffer.get_mut(..limit) else {
            return Ok(());
        };
        let mut entries = RawDir::new(&open.file, buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let taken = add(
                DirEntry {
                    ino: entry.ino(),
                    offset: entry.next_entry_cookie(),
                    type_: type_of(entry.file_type()),
                    name: entry.file_name().to_bytes(),
                },
                entry.file_name(),
            )?;
            // One buffer is one answer: what comes next would be read again anyway.
            if taken == 0 || entries.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }

    /// FUSE_READDIRPLUS: with a lookup of each name that is still there.
    pub(super) fn read_directory_plus(
        &self,
        inode: &Inode,
        handle: u64,
        size: u32,
        offset: u64,
        add: &mut dyn FnMut(DirEntry, Entry) -> io::Result<usize>,
    ) -> io::Result<()> {
        self.read_directory(inode, handle, size, offset, &mut |listed, name| {
            // Node 0 means "no attributes here" and counts no lookup: for the names that are no children, and for a
            // name that went away or can't be looked up, which must not end the listing.
            let entry = match name.to_bytes() {
                b"." | b".." => Entry::default(),
                _ => self.look_up(inode.node, name).unwrap_or_default(),
            };
            let taken = add(listed, entry);
            if !matches!(taken, Ok(length) if length > 0) && entry.inode != 0 {
                lock(&self.inodes).forget(entry.inode, 1);
            }
            taken
        })
    }
}

/// The DT_ constants of `readdir(3)`.
fn type_of(kind: FileType) -> u32 {
    match kind {
        FileType::Unknown => 0,
        known => known.as_raw_mode() >> 12,
    }
}
