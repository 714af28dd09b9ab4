//! Puts kernel, guest image, command line and tables into RAM (PVH direct boot of an ELF vmlinux).

use std::fs::File;
use std::io;
use std::path::Path;

use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{
    COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_MEMORY, MEMORY_MAP, MODULE_LIST, MP_TABLE, START_INFO,
};
use super::vcpu::enter_at;
use super::{ELF_MACHINE, mptable, pvh};
use crate::boot::kernel_file::{self, KernelFile};
use crate::boot::{BootError, Description, load_initrd, read_error};
use crate::kvm::KvmError;
use crate::memory::layout::{RamMap, Region};

const ELF_HEADER_BYTES: usize = 64;

/// A guest that is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Boot {
    entry: u64,
    initrd: Option<Region>,
}

impl Boot {
    /// Loads kernel and guest image.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn load(
        memory: &GuestMemoryMmap,
        ram: &RamMap,
        kernel: &Path,
        initrd: Option<&Path>,
    ) -> Result<Self, BootError> {
        let (entry, kernel_end) = load_kernel(memory, ram, kernel)?;
        let (top, ram_mib) = (ram.ramoops.base, ram.ramoops.base >> 20);
        let initrd = initrd
            .map(|path| load_initrd(memory, kernel_end, top, ram_mib, path))
            .transpose()?;
        Ok(Self { entry, initrd })
    }

    /// Writes what the kernel has to know of the machine.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn describe(
        &self,
        memory: &GuestMemoryMmap,
        ram: &RamMap,
        machine: &Description<'_>,
    ) -> Result<(), BootError> {
        if machine.command_line.len() >= COMMAND_LINE_SIZE {
            return Err(BootError::CommandLine(machine.command_line.len()));
        }
        // validate() bounds the number of vCPUs.
        let vcpus = machine.vcpus.len() as u8;
        write_tables(memory, ram, self.initrd, machine.command_line, vcpus)
            .map_err(|e| BootError::Tables(e.to_string()))
    }

    /// Puts the first vCPU at the kernel's entry; the others wait for its INIT.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn enter(&self, vcpus: &[VcpuFd]) -> Result<(), KvmError> {
        vcpus
            .first()
            .map_or(Ok(()), |first| enter_at(first, self.entry))
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
    let read = read_error("kernel", path);
    let mut file = File::open(path).map_err(read)?;
    let file_length = file.metadata().map_err(read)?.len();
    let header =
        check_header(&kernel_file::read_header(&file).map_err(read)?).map_err(not_a_kernel)?;
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

/// The ELF header, if it is one of a kernel for this architecture.
fn check_header(start: &[u8]) -> Result<[u8; ELF_HEADER_BYTES], String> {
    match kernel_file::recognize(start) {
        KernelFile::Elf {
            le64: true,
            machine: ELF_MACHINE,
        } => start
            .first_chunk()
            .copied()
            .ok_or_else(|| "is truncated".into()),
        KernelFile::Elf { machine: 0, .. } => Err("is truncated".into()),
        other => Err(other.to_string()),
    }
}

/// What the loadable segments span.
#[derive(Debug, PartialEq, Eq)]
struct Extent {
    lowest: u64,
    memory_end: u64,
    file_end: u64,
}

fn extent(file: &mut File, header: &[u8; ELF_HEADER_BYTES]) -> io::Result<Extent> {
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
        Boot::load(&memory, &map, file.path(), None)
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
        assert!(refusal(b"hello, I am a text file\n").contains("is no kernel"));
        assert!(refusal(&elf(62)[..40]).contains("is truncated"));
        assert!(refusal(&elf(62)[..130]).contains("is truncated: 130 bytes of 136"));
        assert!(refusal(&elf(183)).contains("is an ELF file for aarch64"));
        assert!(refusal(&elf(62)).contains("has no PVH entry note"));
    }

    #[test]
    fn an_image_for_aarch64_is_refused_by_its_name() {
        let mut image = vec![0; 4096];
        image[56..60].copy_from_slice(b"ARM\x64");
        let refusal = refusal(&image);
        assert!(
            refusal.contains("is an Image for aarch64; an uncompressed x86_64 ELF vmlinux"),
            "{refusal}"
        );
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
        let boot = Boot {
            entry: 0,
            initrd: None,
        };
        let machine = Description {
            command_line: &"x".repeat(COMMAND_LINE_SIZE),
            vcpus: &[],
            devices: &[],
            serial: false,
        };
        let error = boot.describe(&memory, &map, &machine).unwrap_err();
        assert!(matches!(error, BootError::CommandLine(2048)));
    }
}
