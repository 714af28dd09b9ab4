//! One VM of KVM and the memory that is mapped into it; keeps that memory alive for as long as KVM can reach it.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryRegion};
use vmbox_devices::device::GuestRam;

use super::KvmError;
use crate::memory::dax::Reservation;
use crate::memory::layout::Region;

/// A VM. Its descriptor is dropped before the memory that its slots point to.
pub struct Vm {
    fd: VmFd,
    ram: GuestRam,
    windows: Vec<Arc<Reservation>>,
    slots: u32,
}

impl Vm {
    /// Creates a VM of a type (see [`crate::arch`]) that sees `ram`, but for a spare region, and nothing else yet.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn new(kvm: &Kvm, vm_type: u64, ram: GuestRam) -> Result<Self, KvmError> {
        let fd = create(kvm, vm_type)?;
        let mut vm = Self {
            fd,
            ram: ram.clone(),
            windows: Vec::new(),
            slots: 0,
        };
        for region in ram.iter().filter(|region| region.len() > 0) {
            vm.show(Region {
                base: region.start_addr().0,
                length: region.len(),
            })?;
        }
        Ok(vm)
    }

    /// Shows a part of the RAM to the guest that it has not seen before, and that devices can use.
    ///
    /// # Errors
    /// It is not all of one region of the RAM, or KVM refuses.
    pub fn show(&mut self, place: Region) -> Result<(), KvmError> {
        let length = usize::try_from(place.length).unwrap_or(usize::MAX);
        let host = self
            .ram
            .get_slice(GuestAddress(place.base), length)
            .map_err(|_| KvmError::Lacks("RAM at the end of its address space"))?;
        let address = host.ptr_guard().as_ptr() as u64;
        self.map(place, address)
    }

    /// The guest's RAM.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// The KVM descriptor.
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Shows a DAX window to the guest at `base`.
    ///
    /// # Errors
    /// KVM refuses, e.g. for lack of slots.
    pub fn map_window(&mut self, base: u64, window: &Arc<Reservation>) -> Result<(), KvmError> {
        let place = Region {
            base,
            length: window.length() as u64,
        };
        self.windows.push(window.clone());
        self.map(place, window.host_address())
    }

    fn map(&mut self, place: Region, host_address: u64) -> Result<(), KvmError> {
        let slot = kvm_userspace_memory_region {
            slot: self.slots,
            flags: 0,
            guest_phys_addr: place.base,
            memory_size: place.length,
            userspace_addr: host_address,
        };
        // SAFETY: `host_address` is the start of a mapping of `place.length` bytes that `self` (`ram` or `windows`)
        // keeps alive until after `fd` is closed; vCPU descriptors that outlive it can't run without the VM's owner.
        // The layout places regions so that they do not overlap, and KVM refuses them with EEXIST if they did.
        unsafe { self.fd.set_user_memory_region(slot) }
            .map_err(KvmError::during("map guest memory into the VM"))?;
        self.slots += 1;
        Ok(())
    }
}

fn create(kvm: &Kvm, vm_type: u64) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm_with_type(vm_type) {
            // KVM_CREATE_VM sleeps on locks that a signal interrupts; it has no effect then.
            Err(errno) if errno.errno() == libc::EINTR => {}
            Err(errno) => return Err(KvmError::during("create a VM")(errno)),
            Ok(fd) => return Ok(fd),
        }
    }
}
