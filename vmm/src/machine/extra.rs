//! Memory beside what the guest booted with: where it lies, and how it grows and shrinks while the guest runs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::GuestAddress;
use vmbox_devices::device::GuestRam;
use vmbox_devices::mem::{Mem, MemHandle, USABLE_BYTES};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::devices::ReclaimRam;
use crate::kvm::{KvmError, Vm};
use crate::memory::layout::{GIB, MIB, Region};
use crate::memory::ram::{self, NoMemory};

/// Why the guest's memory could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum ExtraError {
    /// There is no such device.
    #[error("this VM can have {most_mib} MiB beside those that it booted with, not {asked_mib}")]
    TooMuch {
        /// What was asked for.
        asked_mib: u32,
        /// What there can be.
        most_mib: u64,
    },
    /// The host does not.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// KVM does not take it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Where the extra memory goes: from the first multiple of a GiB at or after `end`, as much of `wanted_mib` as addresses of
/// `phys_bits` reach; None if nothing does or is wanted.
pub fn place(end: u64, wanted_mib: u32, phys_bits: u8) -> Option<Region> {
    let base = end.checked_next_multiple_of(GIB)?;
    let limit = 1u64.checked_shl(phys_bits.into()).unwrap_or(u64::MAX);
    let length = (u64::from(wanted_mib) * MIB).min(limit.saturating_sub(base));
    let length = length / USABLE_BYTES * USABLE_BYTES;
    (length > 0).then_some(Region { base, length })
}

/// The extra memory of a machine.
pub struct Extra {
    place: Region,
    device: MemHandle,
    changed: EventFd,
    /// How much of it KVM shows to the guest. The rest is of no use to the guest's processors, whatever it does.
    shown: u64,
}

impl Extra {
    /// The device for the memory at `place`, which is part of `ram`, and the hand on it.
    pub(super) fn new(place: Region, ram: &GuestRam) -> io::Result<(Mem, Self)> {
        let changed = EventFd::new(EFD_NONBLOCK)?;
        let device = Mem::new(
            place.base,
            place.length,
            Arc::new(ReclaimRam(ram.clone())),
            changed.try_clone()?,
        );
        let extra = Self {
            place,
            device: device.handle(),
            changed,
            shown: 0,
        };
        Ok((device, extra))
    }

    /// Asks the guest to have so many MiB of it.
    ///
    /// # Errors
    /// There are not so many, or the host or KVM refuses.
    pub(super) fn request(&mut self, vm: &mut Vm, extra_mib: u32) -> Result<(), ExtraError> {
        let bytes = u64::from(extra_mib) * MIB;
        if bytes > self.place.length {
            return Err(ExtraError::TooMuch {
                asked_mib: extra_mib,
                most_mib: self.place.length / MIB,
            });
        }
        let usable = self.device.usable_for(bytes);
        if usable > self.shown {
            ram::show(vm.ram(), GuestAddress(self.place.base), usable)?;
            vm.show(Region {
                base: self.place.base + self.shown,
                length: usable - self.shown,
            })?;
            self.shown = usable;
        }
        self.device.request(bytes);
        Ok(())
    }

    /// What the guest has of it, in bytes.
    pub fn plugged_bytes(&self) -> u64 {
        self.device.plugged_bytes()
    }

    /// Whether the guest has at least what it was asked to have.
    pub fn is_served(&self) -> bool {
        self.device.is_served()
    }

    /// Readable when the guest has taken or given back some of it.
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }
}

/// How much RAM the guest has, for those whose bounds depend on it.
#[derive(Debug, Clone)]
pub struct RamSize {
    boot: u64,
    now: Arc<AtomicU64>,
}

impl RamSize {
    /// Of a guest that boots with so many bytes.
    pub fn new(boot: u64) -> Self {
        Self {
            boot,
            now: Arc::new(boot.into()),
        }
    }

    /// The figure, as it changes.
    pub fn watch(&self) -> Arc<AtomicU64> {
        self.now.clone()
    }

    /// The guest has so many bytes more than at boot.
    pub fn set_extra(&self, extra: u64) {
        self.now.store(self.boot + extra, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_memory_begins_at_a_gib_and_ends_with_the_address_space() {
        let at = |end, mib| place(end, mib, 36);
        let region = |base, length| Some(Region { base, length });
        assert_eq!(at(5 * GIB + 1, 1000), region(6 * GIB, 896 * MIB));
        assert_eq!(at(63 * GIB, 4096), region(63 * GIB, GIB));
        assert_eq!(at(64 * GIB, 4096), None);
        assert_eq!(at(5 * GIB, 127), None);
    }
}
