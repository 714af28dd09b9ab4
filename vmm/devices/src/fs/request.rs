//! One FUSE message in a descriptor chain: checked, passed to who serves it, always answered (virtio 1.2 §5.11.6).

use std::io::{self, Write};
use std::mem::size_of;
use std::os::fd::AsFd;
use std::sync::Arc;

use fuse_backend_rs::abi::fuse_abi::{CreateIn, EntryOut, InHeader, Opcode, OpenOut, OutHeader};
use fuse_backend_rs::api::filesystem::Context;
use fuse_backend_rs::api::server::Server;
use fuse_backend_rs::transport::{Reader, VirtioFsWriter, Writer};
use vm_memory::ByteValued;

use super::dax::{DaxWindow, Placement};
use super::share::Share;
use super::statx;
use crate::queue::Chain;
use crate::ram::Ram;

/// Larger than any message of ours in either direction: 1 MiB of data (256 pages, what INIT agrees on) with its
/// headers. A chain may describe all of RAM many times over; nothing may be sized by that.
const MESSAGE_MAX: usize = (1 << 20) + 4096;

/// Ranges in one FUSE_REMOVEMAPPING: Linux' FUSE_REMOVEMAPPING_MAX_ENTRY with pages of 64 KiB. Each is a call of mmap.
const UNMAPS_MAX: u32 = 4096;

/// FUSE_SETUPMAPPING_FLAG_WRITE.
const MAPPING_WRITABLE: u64 = 1;

/// Serves a guest's messages until the device is reset.
pub(super) struct Session {
    share: Arc<Share>,
    server: Server<Arc<Share>>,
    dax: Option<DaxWindow>,
}

impl Session {
    pub fn new(share: Share, dax: Option<DaxWindow>) -> Self {
        let share = Arc::new(share);
        Self {
            server: Server::new(share.clone()),
            share,
            dax,
        }
    }

    /// Serves the message in `chain`; the number of bytes of the answer.
    pub fn serve(&self, memory: &Ram, chain: Chain) -> u32 {
        let reader = Reader::from_descriptor_chain(memory, chain.clone());
        let writer = VirtioFsWriter::new(memory, chain);
        // Without both there is no way to answer: the chain goes back empty.
        let (Ok(mut reader), Ok(writer)) = (reader, writer) else {
            return 0;
        };
        let whole = reader.clone();
        let length = reader.available_bytes();
        let Ok(header) = reader.read_obj::<InHeader>() else {
            return 0;
        };
        let unique = header.unique;
        if length > MESSAGE_MAX
            || writer.available_bytes() > MESSAGE_MAX
            || header.len as usize > length
        {
            return answer(writer, unique, Err(error(libc::EINVAL)));
        }
        match Served::of(header.opcode) {
            Served::Library => {
                if header.opcode == Opcode::Init as u32
                    && let Some(dax) = &self.dax
                {
                    dax.clear();
                }
                self.by_library(whole, writer, unique)
            }
            Served::Silent => {
                // These have no answer, not even to nonsense.
                let _ = self.handle(whole, writer);
                0
            }
            Served::Ours(ours) => answer(writer, unique, self.by_us(ours, &header, reader)),
            Served::Unknown => answer(writer, unique, Err(error(libc::ENOSYS))),
        }
    }

    fn by_library(&self, message: Reader, writer: VirtioFsWriter, unique: u64) -> u32 {
        let spare = writer.clone();
        match self.handle(message, writer) {
            Ok(written) => u32::try_from(written).unwrap_or(0),
            // The message could not be parsed, or its answer doesn't fit. The library leaves the guest without an
            // answer then, which would read what was in its buffer before.
            Err(_) => answer(spare, unique, Err(error(libc::EINVAL))),
        }
    }

    fn handle(
        &self,
        message: Reader,
        writer: VirtioFsWriter,
    ) -> Result<usize, fuse_backend_rs::Error> {
        self.server
            .handle_message(message, Writer::from(writer), None, None)
    }

    fn by_us(&self, what: Ours, header: &InHeader, body: Reader) -> io::Result<Vec<u8>> {
        let node = header.nodeid;
        match what {
            Ours::CopyFileRange => self.copy_file_range(node, body),
            Ours::SetupMapping => self.setup_mapping(node, body),
            Ours::RemoveMapping => self.remove_mapping(body),
            Ours::SyncFs => self.share.sync_file_system(node).map(|()| Vec::new()),
            Ours::Tmpfile => self.tmpfile(header, body),
            Ours::Statx => Ok(statx::encode(&self.share.extended_attributes(node)?)),
        }
    }

    /// `struct fuse_copy_file_range_in`, answered with `struct fuse_write_out`.
    fn copy_file_range(&self, node: u64, mut body: Reader) -> io::Result<Vec<u8>> {
        let (from_handle, from_offset) = (body.read_obj()?, body.read_obj()?);
        let (to_node, to_handle, to_offset) =
            (body.read_obj()?, body.read_obj()?, body.read_obj()?);
        let length = body.read_obj()?;
        let copied = self.share.copy_range(
            (node, from_handle, from_offset),
            (to_node, to_handle, to_offset),
            length,
        )?;
        Ok((copied as u64).to_le_bytes().to_vec())
    }

    /// `struct fuse_setupmapping_in`. Its handle is not looked at: Linux sends none.
    fn setup_mapping(&self, node: u64, mut body: Reader) -> io::Result<Vec<u8>> {
        let dax = self.dax.as_ref().ok_or_else(|| error(libc::ENOSYS))?;
        let _handle: u64 = body.read_obj()?;
        let (file_offset, length) = (body.read_obj()?, body.read_obj()?);
        let flags: u64 = body.read_obj()?;
        let at = Placement {
            file_offset,
            window_offset: body.read_obj()?,
            length,
            writable: flags & MAPPING_WRITABLE != 0,
        };
        let file = self.share.open_for_mapping(node, at.writable)?;
        dax.map(file.as_fd(), at)?;
        Ok(Vec::new())
    }

    /// `struct fuse_removemapping_in` and as many `struct fuse_removemapping_one` as it counts.
    fn remove_mapping(&self, mut body: Reader) -> io::Result<Vec<u8>> {
        let dax = self.dax.as_ref().ok_or_else(|| error(libc::ENOSYS))?;
        let count: u32 = body.read_obj()?;
        if count > UNMAPS_MAX {
            return Err(error(libc::EINVAL));
        }
        for _ in 0..count {
            dax.unmap(body.read_obj()?, body.read_obj()?)?;
        }
        Ok(Vec::new())
    }

    /// `struct fuse_create_in` and a name that means nothing, answered as FUSE_CREATE.
    fn tmpfile(&self, header: &InHeader, mut body: Reader) -> io::Result<Vec<u8>> {
        let args: CreateIn = body.read_obj()?;
        let context = Context::from(header);
        let (entry, handle) = self.share.create_unnamed(&context, header.nodeid, &args)?;
        let open = OpenOut {
            fh: handle,
            ..Default::default()
        };
        Ok([EntryOut::from(entry).as_slice(), open.as_slice()].concat())
    }
}

/// Who serves an opcode.
enum Served {
    /// fuse-backend-rs parses it and calls the share.
    Library,
    /// The same, and it has no answer.
    Silent,
    /// We do.
    Ours(Ours),
    /// Nobody. The guest's kernel does without: locks are local, ioctl and poll fail as on a plain file system.
    Unknown,
}

/// What fuse-backend-rs doesn't know, and the mappings, where it would hand us a raw descriptor.
enum Ours {
    CopyFileRange,
    SetupMapping,
    RemoveMapping,
    SyncFs,
    Tmpfile,
    Statx,
}

impl Served {
    /// A list of what is served and not of what isn't: fuse-backend-rs would take any number for an `Opcode`, which
    /// has holes, and would allocate what an ioctl names.
    fn of(opcode: u32) -> Self {
        const SILENT: &[Opcode] = &[Opcode::Forget, Opcode::BatchForget, Opcode::Interrupt];
        const LIBRARY: &[Opcode] = &[
            Opcode::Lookup,
            Opcode::Getattr,
            Opcode::Setattr,
            Opcode::Readlink,
            Opcode::Symlink,
            Opcode::Mknod,
            Opcode::Mkdir,
            Opcode::Unlink,
            Opcode::Rmdir,
            Opcode::Rename,
            Opcode::Link,
            Opcode::Open,
            Opcode::Read,
            Opcode::Write,
            Opcode::Statfs,
            Opcode::Release,
            Opcode::Fsync,
            Opcode::Setxattr,
            Opcode::Getxattr,
            Opcode::Listxattr,
            Opcode::Removexattr,
            Opcode::Flush,
            Opcode::Init,
            Opcode::Opendir,
            Opcode::Readdir,
            Opcode::Releasedir,
            Opcode::Fsyncdir,
            Opcode::Create,
            Opcode::Destroy,
            Opcode::Fallocate,
            Opcode::Readdirplus,
            Opcode::Rename2,
            Opcode::Lseek,
        ];
        match opcode {
            47 => Self::Ours(Ours::CopyFileRange),
            48 => Self::Ours(Ours::SetupMapping),
            49 => Self::Ours(Ours::RemoveMapping),
            50 => Self::Ours(Ours::SyncFs),
            51 => Self::Ours(Ours::Tmpfile),
            52 => Self::Ours(Ours::Statx),
            other if SILENT.iter().any(|known| *known as u32 == other) => Self::Silent,
            other if LIBRARY.iter().any(|known| *known as u32 == other) => Self::Library,
            _ => Self::Unknown,
        }
    }
}

/// Writes the header and the data of an answer; the number of bytes, 0 if there is no room for it.
fn answer(mut writer: VirtioFsWriter, unique: u64, result: io::Result<Vec<u8>>) -> u32 {
    let (errno, data) = match result {
        Ok(data) => (0, data),
        // What has no number is a message that ended too early.
        Err(e) => (e.raw_os_error().unwrap_or(libc::EINVAL), Vec::new()),
    };
    let room = writer.available_bytes();
    let (errno, data) = if size_of::<OutHeader>() + data.len() > room {
        (libc::EINVAL, Vec::new())
    } else {
        (errno, data)
    };
    let len = u32::try_from(size_of::<OutHeader>() + data.len()).unwrap_or(0);
    let header = OutHeader {
        len,
        error: -errno,
        unique,
    };
    let written = writer
        .write_all(header.as_slice())
        .and_then(|()| writer.write_all(&data));
    if written.is_ok() { len } else { 0 }
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
