//! Puts kernel, guest image, command line and tables into RAM (PVH direct boot of an ELF vmlinux).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{
    COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_MEMORY, MEMORY_MAP, MODULE_LIST, MP_TABLE, RamMap,
    START_INFO,
};
use super::{mptable, pvh};
use crate::memory::layout::Region;

/// The kernel or the guest image can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be opened or read.
    #[error("{what} {path}: {source}")]
    Read {
        /// "kernel" or "guest image".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is no kernel that we can boot.
    #[error("kernel {path} {why}; an uncompressed x86_64 ELF vmlinux with CONFIG_PVH=y is needed")]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It does not fit.
    #[error("{what} {path} does not fit into {ram_mib} MiB of guest memory; raise memory_mib")]
    TooLarge {
        /// "kernel" or "guest image".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Low RAM.
        ram_mib: u64,
    },
    /// The kernel would cut it off.
    #[error("the kernel command line has {0} bytes, at most {max} fit; shorten cmdline or attach fewer devices", max = COMMAND_LINE_SIZE - 1)]
    CommandLine(usize),
    /// Guest RAM refused a write; the address map is wrong.
    #[error("write the boot tables into guest memory: {0}")]
    Tables(vm_memory::GuestMemoryError),
}

/// A guest that is ready to be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    /// Where the first vCPU starts.
    pub entry: u64,
}

impl Boot {
    /// Loads everything.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn load(
        memory: &GuestMemoryMmap,
        ram: &RamMap,
        kernel: &Path,
        initrd: Option<&Path>,
        command_line: &str,
        vcpus: u8,
    ) -> Result<Self, BootError> {
        if command_line.len() >= COMMAND_LINE_SIZE {
            return Err(BootError::CommandLine(command_line.len()));
        }
        let (entry, kernel_end) = load_kernel(memory, ram, kernel)?;
        let initrd = initrd
            .map(|path| load_initrd(memory, ram, kernel_end, path))
            .transpose()?;
        write_tables(memory, ram, initrd, command_line, vcpus).map_err(BootError::Tables)?;
        Ok(Self { entry })
    }
}

fn load_kernel(
    memory: &GuestMemoryMmap,
    ram: &RamMap,
    path: &Path,
) -> Result<(u64, u64), BootError> {
    let not_a_kernel = |why: String| BootError::NotAKernel {
        path: path.into(),
        why,
    };
    let read = |source| BootError::Read {
        what: "kernel",
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let file_length = file.metadata().map_err(read)?.len();
    let mut header = [0; 64];
    let header_length = read_up_to(&mut file, &mut header).map_err(read)?;
    check_header(&header[..header_length]).map_err(not_a_kernel)?;
    let extent = extent(&mut file, &header).map_err(|_| not_a_kernel("is truncated".into()))?;
    if extent.file_end > file_length {
        return Err(not_a_kernel(format!(
            "is truncated: {file_length} bytes of {}",
            extent.file_end
        )));
    }
    if extent.lowest < HIGH_MEMORY || extent.memory_end > ram.ramoops.base {
        return Err(BootError::TooLarge {
            what: "kernel",
            path: path.into(),
            ram_mib: ram.ramoops.base >> 20,
        });
    }
    let loaded = Elf::load(memory, None, &mut file, None)
        .map_err(|e| not_a_kernel(format!("can't be loaded: {e}")))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((entry.0, extent.memory_end)),
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Err(not_a_kernel("has no PVH entry note".into()))
        }
    }
}

/// Tells the usual mistakes apart before the loader sees the file.
fn check_header(header: &[u8]) -> Result<(), String> {
    const X86_64: u16 = 62;
    if !header.starts_with(b"\x7fELF") {
        return Err(match header {
            [] => "is empty".into(),
            [b'M', b'Z', ..] => "is a compressed bzImage".into(),
            _ => "is no ELF file".into(),
        });
    }
    let (Some(&class), Some(&data), Some(&[low, high])) = (
        header.get(4),
        header.get(5),
        header.get(18..20).and_then(|bytes| bytes.first_chunk()),
    ) else {
        return Err("is truncated".into());
    };
    if header.len() < 64 {
        return Err("is truncated".into());
    }
    match (class, data, u16::from_le_bytes([low, high])) {
        (2, 1, X86_64) => Ok(()),
        (_, _, machine) => Err(format!("is an ELF file for another machine ({machine})")),
    }
}

/// What the loadable segments span.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    lowest: u64,
    memory_end: u64,
    file_end: u64,
}

fn extent(file: &mut File, header: &[u8; 64]) -> io::Result<Extent> {
    use std::os::unix::fs::FileExt;
    const PT_LOAD: u64 = 1;
    const ENTRY_BYTES: u64 = 56;
    let field = |bytes: &[u8], at: usize| {
        bytes
            .get(at..at + 8)
            .and_then(|b| b.first_chunk().copied())
            .map_or(0, u64::from_le_bytes)
    };
    let overflow = || io::Error::from(io::ErrorKind::InvalidData);
    let table = field(header, 32);
    let count = u64::from(u16::from_le_bytes([header[56], header[57]]));
    let mut extent = Extent {
        lowest: u64::MAX,
        memory_end: 0,
        file_end: 0,
    };
    for index in 0..count {
        let mut entry = [0; ENTRY_BYTES as usize];
        let at = table
            .checked_add(index * ENTRY_BYTES)
            .ok_or_else(overflow)?;
        file.read_exact_at(&mut entry, at)?;
        if field(&entry, 0) & 0xffff_ffff != PT_LOAD {
            continue;
        }
        let (offset, address) = (field(&entry, 8), field(&entry, 24));
        let (in_file, in_memory) = (field(&entry, 32), field(&entry, 40));
        extent.lowest = extent.lowest.min(address);
        extent.file_end = extent
            .file_end
            .max(offset.checked_add(in_file).ok_or_else(overflow)?);
        let length = in_memory.max(in_file);
        extent.memory_end = extent
            .memory_end
            .max(address.checked_add(length).ok_or_else(overflow)?);
    }
    if extent.memory_end == 0 {
        return Err(overflow());
    }
    Ok(extent)
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut bytes = Vec::new();
    file.by_ref()
        .take(buffer.len() as u64)
        .read_to_end(&mut bytes)?;
    buffer[..bytes.len()].copy_from_slice(&bytes);
    Ok(bytes.len())
}

/// As high as it goes, so that the kernel has what lies below to itself.
fn load_initrd(
    memory: &GuestMemoryMmap,
    ram: &RamMap,
    kernel_end: u64,
    path: &Path,
) -> Result<Region, BootError> {
    const PAGE: u64 = 4096;
    let read = |source| BootError::Read {
        what: "guest image",
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let base = ram
        .ramoops
        .base
        .checked_sub(length)
        .map(|base| base / PAGE * PAGE)
        .filter(|base| *base >= kernel_end)
        .ok_or_else(|| BootError::TooLarge {
            what: "guest image",
            path: path.into(),
            ram_mib: ram.ramoops.base >> 20,
        })?;
    // Fits a usize: it is smaller than low RAM.
    memory
        .read_exact_volatile_from(GuestAddress(base), &mut file, length as usize)
        .map_err(|e| read(io::Error::other(e)))?;
    Ok(Region { base, length })
}

fn write_tables(
    memory: &GuestMemoryMmap,
    ram: &RamMap,
    initrd: Option<Region>,
    command_line: &str,
    vcpus: u8,
) -> Result<(), vm_memory::GuestMemoryError> {
    let (map, entries) = pvh::memory_map(ram);
    memory.write_slice(&map, GuestAddress(MEMORY_MAP))?;
    if let Some(initrd) = initrd {
        memory.write_slice(&pvh::module(initrd), GuestAddress(MODULE_LIST))?;
    }
    memory.write_slice(
        &pvh::start_info(initrd.is_some(), entries),
        GuestAddress(START_INFO),
    )?;
    // RAM is zero, so the string ends.
    memory.write_slice(command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_slice(&mptable::build(vcpus, MP_TABLE), GuestAddress(MP_TABLE))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::arch::ram_map;
    use crate::memory::ram::allocate;

    fn refusal(contents: &[u8]) -> String {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        let map = ram_map(32);
        let memory = allocate(&map.regions).unwrap();
        Boot::load(&memory, &map, file.path(), None, "", 1)
            .unwrap_err()
            .to_string()
    }

    /// An ELF file with one segment of 16 bytes at 1 MiB, which is all zeroes, and no notes.
    fn elf(machine: u16) -> Vec<u8> {
        let mut elf = vec![0; 64 + 56 + 16];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[32] = 64; // e_phoff
        elf[54] = 56; // e_phentsize
        elf[56] = 1; // e_phnum
        elf[64] = 1; // PT_LOAD
        elf[64 + 8] = 120; // p_offset
        elf[64 + 24..64 + 32].copy_from_slice(&HIGH_MEMORY.to_le_bytes());
        elf[64 + 32] = 16; // p_filesz
        elf[64 + 40] = 16; // p_memsz
        elf
    }

    #[test]
    fn files_that_are_no_kernel_are_told_apart() {
        assert!(refusal(b"").contains("is empty"));
        assert!(refusal(b"hello, I am a text file\n").contains("is no ELF file"));
        assert!(refusal(b"MZ\xea\x07").contains("compressed bzImage"));
        assert!(refusal(&elf(62)[..40]).contains("is truncated"));
        assert!(refusal(&elf(62)[..130]).contains("is truncated: 130 bytes of 136"));
        assert!(refusal(&elf(183)).contains("another machine (183)"));
        assert!(refusal(&elf(62)).contains("has no PVH entry note"));
    }

    #[test]
    fn a_segment_outside_of_ram_does_not_fit() {
        let mut kernel = elf(62);
        kernel[64 + 44] = 1; // p_memsz: 4 GiB and 16 bytes
        assert!(refusal(&kernel).contains("does not fit into 31 MiB"));
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let map = ram_map(32);
        let memory = allocate(&map.regions).unwrap();
        let line = "x".repeat(COMMAND_LINE_SIZE);
        let error =
            Boot::load(&memory, &map, Path::new("/nonexistent"), None, &line, 1).unwrap_err();
        assert!(matches!(error, BootError::CommandLine(2048)));
    }
}
