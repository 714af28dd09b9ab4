//! Puts kernel, guest image, command line and tables into RAM (PVH direct boot of an ELF vmlinux).

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::ram::Ram;

use super::layout::{
    COMMAND_LINE, COMMAND_LINE_SIZE, HIGH_MEMORY, MEMORY_MAP, MODULE_LIST, MP_TABLE, START_INFO,
};
use super::vcpu::enter_at;
use super::vmlinux::{self, Segment};
use super::{ELF_MACHINE, mptable, pvh};
use crate::boot::kernel_file::{self, KernelFile};
use crate::boot::{BootError, Description, load_initrd, read_error};
use crate::kvm::KvmError;
use crate::memory::layout::{RamMap, Region};

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
        memory: &Ram,
        ram: &RamMap,
        kernel: &Path,
        initrd: Option<&Path>,
    ) -> Result<Self, BootError> {
        let (entry, end) = load_kernel(memory, ram, kernel)?;
        let (top, ram_mib) = (ram.ramoops.base, ram.ramoops.base >> 20);
        let initrd = initrd
            .map(|path| load_initrd(memory, end, top, ram_mib, path))
            .transpose()?;
        Ok(Self { entry, initrd })
    }

    /// Writes what the kernel has to know of the machine.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn describe(
        &self,
        memory: &Ram,
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

/// Puts the kernel's segments in their places; returns its entry and the end of the memory that it takes.
fn load_kernel(memory: &Ram, ram: &RamMap, path: &Path) -> Result<(u64, u64), BootError> {
    let not_a_kernel = |why: String| BootError::NotAKernel {
        path: path.into(),
        why,
    };
    let read = read_error("kernel", path);
    let file = File::open(path).map_err(read)?;
    let file_length = file.metadata().map_err(read)?.len();
    check_header(&kernel_file::read_header(&file).map_err(read)?).map_err(not_a_kernel)?;
    let vmlinux = vmlinux::parse(&file).map_err(not_a_kernel)?;
    let extent = vmlinux.extent();
    if extent.file_end > file_length {
        return Err(not_a_kernel(format!(
            "is truncated: {file_length} bytes of {}",
            extent.file_end
        )));
    }
    let top = ram.ramoops.base;
    if extent.lowest < HIGH_MEMORY || extent.memory_end > top {
        return Err(BootError::TooLarge {
            what: "kernel",
            path: path.into(),
            ram_mib: top >> 20,
        });
    }
    for segment in &vmlinux.segments {
        place(memory, &file, segment).map_err(read)?;
    }
    Ok((vmlinux.entry, extent.memory_end))
}

/// What lies behind the segment's bytes is zero, as all RAM is.
fn place(memory: &Ram, mut file: &File, segment: &Segment) -> io::Result<()> {
    let length = usize::try_from(segment.length).map_err(io::Error::other)?;
    file.seek(SeekFrom::Start(segment.offset))?;
    memory
        .read_exact_volatile_from(GuestAddress(segment.address), &mut file, length)
        .map_err(io::Error::other)
}

/// Tells the usual mistakes apart before the parser sees the file.
fn check_header(start: &[u8]) -> Result<(), String> {
    match kernel_file::recognize(start) {
        KernelFile::Elf {
            le64: true,
            machine: ELF_MACHINE,
        } => Ok(()),
        KernelFile::Elf { machine: 0, .. } => Err("is truncated".into()),
        other => Err(other.to_string()),
    }
}

fn write_tables(
    memory: &Ram,
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

    #[test]
    fn segments_are_in_their_places_and_what_follows_is_zero() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vmlinux::sample()).unwrap();
        let map = ram_map(32);
        let memory = allocate(&map.regions).unwrap();
        let boot = Boot::load(&memory, &map, file.path(), None).unwrap();
        assert_eq!(boot.entry, 0x100_0000);
        let mut bytes = [0xff; 18];
        memory
            .read_slice(&mut bytes, GuestAddress(HIGH_MEMORY - 1))
            .unwrap();
        let mut expected = [0x90; 18];
        (expected[0], expected[17]) = (0, 0);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn files_that_are_no_kernel_are_told_apart() {
        assert!(refusal(b"").contains("is empty"));
        assert!(refusal(b"hello, I am a text file\n").contains("is no kernel"));
        let mut kernel = vmlinux::sample();
        assert!(refusal(&kernel[..40]).contains("is truncated"));
        assert!(refusal(&kernel[..200]).contains("is truncated: 200 bytes of 212"));
        kernel[18] = 183;
        assert!(refusal(&kernel).contains("is an ELF file for aarch64"));
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
        let mut kernel = vmlinux::sample();
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
