//! Writes the data of regular files, with the holes of sparse ones.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use rustix::fs::{Mode, OFlags, openat};

use super::beneath::Dir;
use super::member::Member;
use super::unpack::{UnpackError, write_error};

const COPY_BYTES: usize = 128 << 10;

/// Makes a new file; fails if the name exists.
pub fn create(parent: &Dir, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(openat(
        parent,
        name,
        flags,
        Mode::from_raw_mode(0o600),
    )?))
}

/// Writes `member`'s data, read from `data`, to the empty `file`.
pub fn write(mut file: &File, member: &Member, data: &mut impl Read) -> Result<(), UnpackError> {
    let whole = [(0, member.size)];
    let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(member.size).unwrap_or(COPY_BYTES))];
    for (offset, length) in member.sparse.as_deref().unwrap_or(&whole) {
        if member.sparse.is_some() {
            file.seek(SeekFrom::Start(*offset))
                .map_err(|source| write_error(member, source))?;
        }
        copy(data, file, *length, &mut buffer, member)?;
    }
    if member.sparse.is_some() {
        file.set_len(member.size)
            .map_err(|source| write_error(member, source))?;
    }
    Ok(())
}

fn copy(
    data: &mut impl Read,
    mut file: &File,
    length: u64,
    buffer: &mut [u8],
    member: &Member,
) -> Result<(), UnpackError> {
    let mut left = length;
    while left > 0 {
        let want = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let chunk = buffer.get_mut(..want).unwrap_or_default();
        let count = match data.read(chunk) {
            Ok(0) => return Err(UnpackError::Read(io::ErrorKind::UnexpectedEof.into())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(UnpackError::Read(error)),
        };
        let filled = chunk.get(..count).unwrap_or_default();
        file.write_all(filled)
            .map_err(|source| write_error(member, source))?;
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}
