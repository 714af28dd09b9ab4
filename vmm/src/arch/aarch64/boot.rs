//! Puts kernel, guest image and device tree into RAM, and the first vCPU at the kernel's entry
//! (Documentation/arch/arm64/booting.rst).

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::ram::Ram;

use super::fdt::{self, Tree};
use super::image::{self, Granule, Image};
use super::layout::{RAM_BASE, fdt_address};
use super::options::COMMAND_LINE_SIZE;
use super::registers;
use crate::boot::kernel_file::{self, KernelFile};
use crate::boot::{BootError, Description, load_initrd, read_error};
use crate::kvm::KvmError;
use crate::memory::layout::{RamMap, Region};

/// A guest that is loaded.
#[derive(Debug, PartialEq, Eq)]
pub struct Boot {
    kernel: PathBuf,
    granule: Option<Granule>,
    entry: u64,
    initrd: Option<Region>,
    fdt: u64,
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
        let fdt = fdt_address(ram);
        let (image, place) = load_kernel(memory, fdt, kernel)?;
        let initrd = initrd
            .map(|path| load_initrd(memory, place.end(), fdt, ram_mib(fdt), path))
            .transpose()?;
        Ok(Self {
            kernel: kernel.into(),
            granule: image.granule,
            entry: place.base,
            initrd,
            fdt,
        })
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
        if let Some(first) = machine.vcpus.first() {
            self.check_granule(registers::get(first, registers::ID_AA64MMFR0_EL1)?)?;
        }
        let mpidrs = machine
            .vcpus
            .iter()
            .map(|vcpu| registers::get(vcpu, registers::MPIDR_EL1))
            .collect::<Result<Vec<_>, _>>()?;
        let tables = |error: &dyn std::error::Error| BootError::Tables(error.to_string());
        let random = random().map_err(|e| tables(&e))?;
        let [.., kaslr_seed] = random;
        let mut rng_seed = [0; 64];
        for (bytes, word) in rng_seed.chunks_exact_mut(8).zip(random) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        let tree = Tree {
            mpidrs: &mpidrs,
            ram: Region {
                base: RAM_BASE,
                length: ram.end - RAM_BASE,
            },
            log: ram.ramoops,
            initrd: self.initrd,
            command_line: machine.command_line,
            devices: machine.devices,
            serial: machine.serial,
            rng_seed,
            kaslr_seed,
        };
        let blob = fdt::build(&tree).map_err(|e| tables(&e))?;
        memory
            .write_slice(&blob, GuestAddress(self.fdt))
            .map_err(|e| tables(&e))
    }

    /// Puts the first vCPU at the kernel's entry; the others are off until the kernel asks for them.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn enter(&self, vcpus: &[VcpuFd]) -> Result<(), KvmError> {
        let Some(first) = vcpus.first() else {
            return Ok(());
        };
        for (register, value) in self.entry_registers() {
            registers::set(first, register, value)?;
        }
        Ok(())
    }

    /// "Primary CPU general-purpose register settings" of Documentation/arch/arm64/booting.rst §4: the device tree in
    /// x0, zero in x1 to x3. PSTATE is KVM_ARM_VCPU_INIT's (EL1h, all interrupts masked), as are the MMU and the caches,
    /// which are off.
    fn entry_registers(&self) -> [(u64, u64); 5] {
        [
            (registers::PC, self.entry),
            (registers::x(0), self.fdt),
            (registers::x(1), 0),
            (registers::x(2), 0),
            (registers::x(3), 0),
        ]
    }

    fn check_granule(&self, mmfr0: u64) -> Result<(), BootError> {
        match self.granule {
            Some(granule) if !granule.is_offered(mmfr0) => Err(BootError::NotAKernel {
                path: self.kernel.clone(),
                why: format!(
                    "is built for pages of {} KiB, which this processor lacks",
                    granule.kib()
                ),
            }),
            _ => Ok(()),
        }
    }
}

/// As near to the start of RAM as it says (flag 3 may allow more, but there is no reason to).
fn load_kernel(memory: &Ram, top: u64, path: &Path) -> Result<(Image, Region), BootError> {
    let not_a_kernel = |why: String| BootError::NotAKernel {
        path: path.into(),
        why,
    };
    let read = read_error("kernel", path);
    let mut file = File::open(path).map_err(read)?;
    let file_length = file.metadata().map_err(read)?.len();
    let header = kernel_file::read_header(&file).map_err(read)?;
    match kernel_file::recognize(&header) {
        KernelFile::Aarch64Image => {}
        other => return Err(not_a_kernel(other.to_string())),
    }
    let image = image::parse(&header, file_length).map_err(not_a_kernel)?;
    let place = Region {
        base: RAM_BASE + image.text_offset,
        length: image.image_size,
    };
    if place
        .base
        .checked_add(place.length)
        .is_none_or(|end| end > top)
    {
        return Err(BootError::TooLarge {
            what: "kernel",
            path: path.into(),
            ram_mib: ram_mib(top),
        });
    }
    // Fits a usize: it is smaller than low RAM.
    memory
        .read_exact_volatile_from(GuestAddress(place.base), &mut file, file_length as usize)
        .map_err(|e| read(io::Error::other(e)))?;
    Ok((image, place))
}

fn ram_mib(top: u64) -> u64 {
    (top - RAM_BASE) >> 20
}

/// Eight words for the kernel's generator and one for its place.
fn random() -> io::Result<[u64; 9]> {
    let mut bytes = [0; 72];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let mut words = [0; 9];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = chunk.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::arch::ram_map;
    use crate::memory::ram::allocate;

    fn load(contents: &[u8]) -> Result<Boot, BootError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(contents).unwrap();
        let map = ram_map(32);
        let memory = allocate(&map.regions).unwrap();
        Boot::load(&memory, &map, file.path(), None)
    }

    /// An Image of 4 KiB in the file and `size` in memory.
    fn image(size: u64) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[16..24].copy_from_slice(&size.to_le_bytes());
        image[24] = 0b100;
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    #[test]
    fn kernels_for_x86_64_are_refused_by_their_name() {
        let mut vmlinux = b"\x7fELF\x02\x01\x01".to_vec();
        vmlinux.resize(64, 0);
        vmlinux[18] = 62;
        let refusal = load(&vmlinux).unwrap_err().to_string();
        assert!(
            refusal.contains(
                "is an ELF file for x86_64; an uncompressed, little-endian aarch64 Image is needed"
            ),
            "{refusal}"
        );
        let mut bzimage = vec![0; 1024];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let refusal = load(&bzimage).unwrap_err().to_string();
        assert!(refusal.contains("bzImage for x86_64"), "{refusal}");
    }

    #[test]
    fn an_image_goes_to_the_start_of_ram_if_it_fits() {
        assert_eq!(load(&image(1 << 20)).unwrap().entry, RAM_BASE);
        let refusal = load(&image(32 << 20)).unwrap_err().to_string();
        assert!(refusal.contains("does not fit into 31 MiB"), "{refusal}");
        assert!(load(&image(u64::MAX)).is_err());
    }

    #[test]
    fn the_kernel_is_entered_at_its_start_with_the_device_tree_in_x0() {
        let registers = load(&image(1 << 20)).unwrap().entry_registers();
        assert_eq!(registers[0], (registers::PC, RAM_BASE));
        let tree = fdt_address(&ram_map(32));
        assert_eq!(registers[1], (registers::x(0), tree));
        let zero = [1, 2, 3].map(|index| (registers::x(index), 0));
        assert_eq!(registers[2..], zero);
    }

    #[test]
    fn a_page_size_that_the_processor_lacks_is_refused() {
        let boot = load(&image(1 << 20)).unwrap();
        assert!(boot.check_granule(0x10_0000).is_ok());
        let refusal = boot.check_granule(0x1122).unwrap_err().to_string();
        assert!(refusal.contains("pages of 16 KiB"), "{refusal}");
    }

    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let map = ram_map(32);
        let memory = allocate(&map.regions).unwrap();
        let machine = Description {
            command_line: &"x".repeat(COMMAND_LINE_SIZE),
            vcpus: &[],
            devices: &[],
            serial: false,
        };
        let boot = load(&image(1 << 20)).unwrap();
        let error = boot.describe(&memory, &map, &machine).unwrap_err();
        assert!(matches!(error, BootError::CommandLine(2048)));
    }
}
