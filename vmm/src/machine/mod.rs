//! The machine: a VM with its devices, vCPUs and workers, and what becomes of them.

pub mod assemble;
pub mod board;
mod devices;
pub mod extra;
pub mod nics;
mod validate;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};
use vmbox_config::Stats;
use vmbox_devices::device::GuestRam;
use vmbox_devices::worker::{NotPaused, Worker};

use self::board::Bus;
use self::devices::Balloon;
use self::extra::{Extra, ExtraError, RamSize};
use self::nics::Nics;
use crate::ending::EndingSlot;
use crate::kvm::Vm;
use crate::memory::layout::{MIB, Region};
use crate::ramoops::{self, Remains};
use crate::vcpu::Vcpus;
use crate::vcpu::gate::NotParked;

/// Why the guest could not be paused.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A vCPU does not leave the guest.
    #[error(transparent)]
    Vcpus(#[from] NotParked),
    /// A device does not come to an end.
    #[error(transparent)]
    Devices(#[from] NotPaused),
}

/// A booted or bootable VM. Fields are dropped in this order: first nobody runs guest code any more, then no device is
/// served, then the memory goes.
pub struct Machine {
    vcpus: Option<Vcpus>,
    _bus: Arc<Bus>,
    balloon: Option<Balloon>,
    extra: Option<Extra>,
    ram_size: RamSize,
    nics: Nics,
    workers: Vec<Worker>,
    ending: Arc<EndingSlot>,
    ram: GuestRam,
    ramoops: Region,
    vm: Vm,
}

impl Machine {
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller, which has just built each of them"
    )]
    fn new(
        vm: Vm,
        ram: GuestRam,
        ramoops: Region,
        bus: Arc<Bus>,
        workers: Vec<Worker>,
        balloon: Option<Balloon>,
        extra: Option<Extra>,
        ram_size: RamSize,
        nics: Nics,
        ending: Arc<EndingSlot>,
        vcpus: Vcpus,
    ) -> Self {
        Self {
            vcpus: Some(vcpus),
            _bus: bus,
            balloon,
            extra,
            ram_size,
            nics,
            workers,
            ending,
            ram,
            ramoops,
            vm,
        }
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        for worker in &self.workers {
            worker.handle().resume();
        }
        self.with_vcpus(Vcpus::resume);
    }

    /// Stops vCPUs, then devices. When it returns, nothing of the guest moves.
    ///
    /// # Errors
    /// See [`PauseError`]; the guest runs on.
    pub fn pause(&self) -> Result<(), PauseError> {
        self.with_vcpus(Vcpus::pause).unwrap_or(Ok(()))?;
        for worker in &self.workers {
            if let Err(error) = worker.handle().pause() {
                self.resume();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Ends the vCPUs for good; the guest's memory can still be read.
    pub fn halt(&mut self) {
        self.vcpus = None;
    }

    /// Where the ending appears.
    pub fn ending(&self) -> &EndingSlot {
        &self.ending
    }

    /// Sets the size that the balloon should have; false if there is no balloon.
    pub fn set_balloon(&self, target_mib: u32) -> bool {
        self.balloon
            .as_ref()
            .map(|balloon| balloon.set_target(target_mib))
            .is_some()
    }

    /// Asks the guest to use so many MiB beside those that it booted with.
    ///
    /// # Errors
    /// See [`ExtraError`].
    pub fn set_extra_memory(&mut self, extra_mib: u32) -> Result<(), ExtraError> {
        match &mut self.extra {
            Some(extra) => extra.request(&mut self.vm, extra_mib),
            None if extra_mib == 0 => Ok(()),
            None => Err(ExtraError::TooMuch {
                asked_mib: extra_mib,
                most_mib: 0,
            }),
        }
    }

    /// The memory beside what the guest booted with, if it can have any.
    pub fn extra(&self) -> Option<&Extra> {
        self.extra.as_ref()
    }

    /// Takes note that the guest has taken or given back some of its extra memory. Whether it has all that it is to have.
    pub fn extra_has_changed(&self) -> bool {
        self.extra.as_ref().is_none_or(|extra| {
            // An empty counter is no failure.
            let _ = extra.changed().read();
            self.ram_size.set_extra(extra.plugged_bytes());
            extra.is_served()
        })
    }

    /// The slots for NICs.
    pub fn nics(&self) -> &Nics {
        &self.nics
    }

    /// The counters, but for the time.
    pub fn stats(&self) -> Stats {
        let balloon_mib = self.balloon.as_ref().map_or(0, Balloon::actual_mib);
        let extra = self.extra.as_ref().map_or(0, Extra::plugged_bytes);
        let extra_mib = u32::try_from(extra / MIB).unwrap_or(u32::MAX);
        self.with_vcpus(|vcpus| {
            let counters = vcpus.counters();
            Stats {
                uptime_us: 0,
                paused: vcpus.is_paused(),
                exits: counters.exits.load(Ordering::Relaxed),
                mmio_exits: counters.mmio.load(Ordering::Relaxed),
                pio_exits: counters.pio.load(Ordering::Relaxed),
                balloon_mib,
                extra_mib,
            }
        })
        .unwrap_or_default()
    }

    /// What the guest kernel has left in its log region.
    pub fn remains(&self) -> Remains {
        let mut region = vec![0; ramoops::REGION_BYTES as usize];
        match self
            .ram
            .read_slice(&mut region, GuestAddress(self.ramoops.base))
        {
            Ok(()) => ramoops::parse(&region),
            Err(_) => Remains::default(),
        }
    }

    fn with_vcpus<T>(&self, f: impl FnOnce(&Vcpus) -> T) -> Option<T> {
        self.vcpus.as_ref().map(f)
    }
}

/// The kernel's log region: the end of low RAM.
pub fn ramoops_place(low_ram: Region) -> Region {
    Region {
        base: low_ram.end() - ramoops::REGION_BYTES,
        length: ramoops::REGION_BYTES,
    }
}
