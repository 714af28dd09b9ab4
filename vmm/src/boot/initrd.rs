//! The guest image: where it goes, and whether its /init is for this machine at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::ram::Ram;

use super::kernel_file::{self, KernelFile};
use super::{BootError, read_error};
use crate::arch;
use crate::memory::layout::Region;

const PAGE: u64 = 4096;
/// An archive whose /init comes later than this is not looked through.
const MAX_ENTRIES: usize = 256;

/// Loads the guest image as high below `top` as it goes, so that the kernel has what lies below to itself, but not
/// below `bottom`. `ram_mib` is for the error.
///
/// # Errors
/// It can't be read, is for another machine, or does not fit.
pub fn load_initrd(
    memory: &Ram,
    bottom: u64,
    top: u64,
    ram_mib: u64,
    path: &Path,
) -> Result<Region, BootError> {
    let read = read_error("guest image", path);
    let mut file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    match init_machine(&file) {
        None | Some(arch::ELF_MACHINE) => {}
        Some(machine) => {
            return Err(BootError::WrongImage {
                path: path.into(),
                machine: kernel_file::machine_name(machine),
            });
        }
    }
    let base = top
        .checked_sub(length)
        .map(|base| base / PAGE * PAGE)
        .filter(|base| *base >= bottom)
        .ok_or_else(|| BootError::TooLarge {
            what: "guest image",
            path: path.into(),
            ram_mib,
        })?;
    // Fits a usize: it is smaller than low RAM.
    memory
        .read_exact_volatile_from(GuestAddress(base), &mut file, length as usize)
        .map_err(|e| read(io::Error::other(e)))?;
    Ok(Region { base, length })
}

/// The ELF machine of /init, if the file is an uncompressed newc archive (Documentation/driver-api/early-userspace/
/// buffer-format.rst) that has an ELF file of this name. What else a kernel can unpack is the kernel's business.
fn init_machine(file: &File) -> Option<u16> {
    const HEADER: usize = 110;
    let mut at = 0u64;
    for _ in 0..MAX_ENTRIES {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, at).ok()?;
        if !header.starts_with(b"07070") {
            return None;
        }
        let field = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8)?;
            u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        // Long enough for /init; no entry is followed by less, the archive's end is 124 bytes long.
        let mut name = [0; 8];
        file.read_exact_at(&mut name, at + HEADER as u64).ok()?;
        let data = (at + HEADER as u64 + name_size).next_multiple_of(4);
        match usize::try_from(name_size).ok().and_then(|n| name.get(..n)) {
            Some(b"init\0" | b"./init\0" | b"/init\0") => {
                let mut start = [0; 20];
                file.read_exact_at(&mut start, data).ok()?;
                return match kernel_file::recognize(&start) {
                    KernelFile::Elf { machine, .. } => Some(machine),
                    _ => None,
                };
            }
            _ => at = (data + size).next_multiple_of(4),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = b"070701".to_vec();
        let fields = [
            0,
            0o100_755,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            0,
            0,
            name.len() + 1,
            0,
        ];
        for field in fields {
            bytes.extend(format!("{field:08x}").bytes());
        }
        bytes.extend(name.bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn elf(machine: u16) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf
    }

    fn archive(entries: &[Vec<u8>]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&entries.concat()).unwrap();
        file.write_all(&entry("TRAILER!!!", b"")).unwrap();
        file
    }

    #[test]
    fn the_machine_of_init_is_found_behind_other_files() {
        let file = archive(&[
            entry("dev", b""),
            entry("a/file", b"xyz"),
            entry("init", &elf(183)),
        ]);
        assert_eq!(init_machine(&file), Some(183));
        assert_eq!(
            init_machine(&archive(&[entry("./init", &elf(62))])),
            Some(62)
        );
    }

    #[test]
    fn scripts_other_archives_and_broken_ones_are_left_to_the_kernel() {
        assert_eq!(
            init_machine(&archive(&[entry("init", b"#!/bin/sh\n exec /bin/x\n")])),
            None
        );
        assert_eq!(init_machine(&archive(&[entry("linuxrc", &elf(62))])), None);
        assert_eq!(init_machine(&archive(&[b"\x1f\x8b".to_vec()])), None);
        let mut broken = entry("init", &elf(62));
        broken[94..102].copy_from_slice(b"zzzzzzzz");
        assert_eq!(init_machine(&archive(&[broken])), None);
    }

    #[test]
    fn an_image_for_another_machine_is_refused() {
        let other = if arch::ELF_MACHINE == 62 { 183 } else { 62 };
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&entry("init", &elf(other))).unwrap();
        let map = arch::ram_map(32);
        let memory = crate::memory::ram::allocate(&map.regions).unwrap();
        let error = load_initrd(&memory, 0, map.end, 32, file.path()).unwrap_err();
        assert!(error.to_string().contains("has an /init for"), "{error}");
    }
}
