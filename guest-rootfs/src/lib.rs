//! Packs the agent into the guest image: an uncompressed newc cpio, reproducible to the byte.
//!
//! The kernel unpacks it into its root (`Documentation/driver-api/early-userspace/buffer-format.rst`).
//! Everything that varies between machines and moments is fixed: owner, times, inode numbers, order.

use std::io::{self, Write as _};

use cpio::newc::{self, ModeFileType};

/// An image above this many bytes is refused: it would be in the memory of every pod.
pub const SIZE_LIMIT_BYTES: usize = 8 << 20;

/// The mount points that the agent's mount table needs before it can make any.
const FOLDERS: [(&str, u32); 5] = [
    ("dev", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
];

/// Why an image could not be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The first four bytes are not those of an ELF file.
    #[error("the agent is not an ELF file")]
    NotElf,
    /// It has a PT_INTERP header, and the image has no dynamic linker to run it.
    #[error("the agent is dynamically linked (it asks for {0}), build it with +crt-static")]
    Dynamic(String),
    /// The program headers point outside the file.
    #[error("the agent's ELF headers are damaged")]
    DamagedElf,
    /// The image would be larger than [`SIZE_LIMIT_BYTES`].
    #[error("the image would be {0} bytes, the limit is {SIZE_LIMIT_BYTES}")]
    TooLarge(usize),
    /// The archive could not be written.
    #[error("write the archive")]
    Write(#[from] io::Error),
}

/// Packs `agent`, a static ELF binary, as `/init` beside empty folders and `/dev/console`.
///
/// The same bytes in give the same bytes out. `/dev/console` is there because the kernel opens it as
/// PID 1's stdin, stdout and stderr before the agent mounts anything.
pub fn pack(agent: &[u8]) -> Result<Vec<u8>, PackError> {
    require_static_elf(agent)?;
    let mut image = Archive::default();
    for (name, mode) in FOLDERS {
        image.folder(name, mode)?;
        if name == "dev" {
            image.device("dev/console", 0o600, 5, 1)?;
        }
    }
    image.file("init", 0o755, agent)?;
    let image = image.finish()?;
    if image.len() > SIZE_LIMIT_BYTES {
        return Err(PackError::TooLarge(image.len()));
    }
    Ok(image)
}

/// A cpio under construction; entries get inode numbers in the order in which they come.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    last_inode: u32,
}

impl Archive {
    fn folder(&mut self, name: &str, mode: u32) -> io::Result<()> {
        let entry = newc::Builder::new(name)
            .nlink(2)
            .mode(mode)
            .set_mode_file_type(ModeFileType::Directory);
        self.entry(entry, &[])
    }

    fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) -> io::Result<()> {
        let entry = newc::Builder::new(name)
            .mode(mode)
            .set_mode_file_type(ModeFileType::Char)
            .rdev_major(major)
            .rdev_minor(minor);
        self.entry(entry, &[])
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let entry = newc::Builder::new(name)
            .mode(mode)
            .set_mode_file_type(ModeFileType::Regular);
        self.entry(entry, content)
    }

    fn entry(&mut self, entry: newc::Builder, content: &[u8]) -> io::Result<()> {
        self.last_inode += 1;
        let size = u32::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut writer = entry.ino(self.last_inode).write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish()?;
        Ok(())
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        newc::trailer(self.bytes)
    }
}

/// ELF-64 little-endian (System V gABI, chapters 4 and 5) without a PT_INTERP segment.
fn require_static_elf(file: &[u8]) -> Result<(), PackError> {
    const PT_INTERP: u64 = 3;
    if !file.starts_with(b"\x7fELF") {
        return Err(PackError::NotElf);
    }
    let headers = number(file, 32, 8)?;
    let header_size = number(file, 54, 2)?;
    let header_count = number(file, 56, 2)?;
    for index in 0..header_count {
        let header = headers
            .checked_add(index * header_size)
            .ok_or(PackError::DamagedElf)?;
        // The last of its fields, so that a header cut off by the end of the file is noticed.
        number(file, header.saturating_add(48), 8)?;
        if number(file, header, 4)? != PT_INTERP {
            continue;
        }
        let at = header.checked_add(8).ok_or(PackError::DamagedElf)?;
        let offset = number(file, at, 8)?;
        let path = usize::try_from(offset)
            .ok()
            .and_then(|offset| file.get(offset..))
            .ok_or(PackError::DamagedElf)?;
        let path = path.split(|byte| *byte == 0).next().unwrap_or_default();
        return Err(PackError::Dynamic(String::from_utf8_lossy(path).into()));
    }
    Ok(())
}

/// The little-endian number of `width` (at most 8) bytes at `offset`.
fn number(file: &[u8], offset: u64, width: usize) -> Result<u64, PackError> {
    let start = usize::try_from(offset).map_err(|_| PackError::DamagedElf)?;
    let end = start.checked_add(width).ok_or(PackError::DamagedElf)?;
    let bytes = file.get(start..end).ok_or(PackError::DamagedElf)?;
    let number = bytes.iter().rev();
    Ok(number.fold(0, |sum, byte| (sum << 8) | u64::from(*byte)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A 64-byte ELF header with one program header of type `segment` behind it.
    fn elf(segment: u32) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..4].copy_from_slice(b"\x7fELF");
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64..68].copy_from_slice(&segment.to_le_bytes());
        file[72] = 120;
        file.extend_from_slice(b"/lib64/ld-linux-x86-64.so.2\0");
        file
    }

    /// Name, inode, mode and content of every entry.
    fn entries(image: &[u8]) -> Vec<(String, u32, u32, Vec<u8>)> {
        let mut rest = image;
        let mut all = Vec::new();
        loop {
            let mut entry = newc::Reader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                return all;
            }
            let mut content = Vec::new();
            io::copy(&mut entry, &mut content).unwrap();
            let head = entry.entry();
            assert_eq!((head.mtime(), head.uid(), head.gid()), (0, 0, 0));
            all.push((head.name().into(), head.ino(), head.mode(), content));
            rest = entry.finish().unwrap();
        }
    }

    #[test]
    fn two_builds_are_identical() {
        let agent = elf(1);
        assert_eq!(pack(&agent).unwrap(), pack(&agent.clone()).unwrap());
    }

    #[test]
    fn image_holds_the_agent_and_folders_and_nothing_else() {
        let agent = elf(1);
        let image = entries(&pack(&agent).unwrap());
        let shape: Vec<_> = image.iter().map(|e| (e.0.as_str(), e.1, e.2)).collect();
        assert_eq!(
            shape,
            [
                ("dev", 1, 0o040755),
                ("dev/console", 2, 0o020600),
                ("proc", 3, 0o040555),
                ("run", 4, 0o040755),
                ("sys", 5, 0o040555),
                ("tmp", 6, 0o041777),
                ("init", 7, 0o100755),
            ]
        );
        assert_eq!(image[6].3, agent);
    }

    #[test]
    fn dynamic_agent_is_refused_by_the_name_of_its_linker() {
        let error = pack(&elf(3)).unwrap_err().to_string();
        assert!(error.contains("/lib64/ld-linux-x86-64.so.2"), "{error}");
    }

    #[test]
    fn script_is_refused() {
        assert!(matches!(pack(b"#!/bin/sh\n"), Err(PackError::NotElf)));
    }

    #[test]
    fn truncated_elf_is_refused() {
        assert!(matches!(pack(&elf(1)[..70]), Err(PackError::DamagedElf)));
    }

    #[test]
    fn image_above_the_limit_is_refused() {
        let mut agent = elf(1);
        agent.resize(SIZE_LIMIT_BYTES, 0);
        assert!(matches!(pack(&agent), Err(PackError::TooLarge(_))));
    }
}
