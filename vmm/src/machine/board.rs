//! The board: gives each device its addresses, interrupt and doorbells, and finds it again when a vCPU touches them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::IoEventAddress;
use vmbox_devices::device::VirtioDevice;
use vmbox_devices::transport::{MMIO_REGION_SIZE, MmioTransport, QUEUE_NOTIFY};
use vmbox_devices::worker::WorkerHandle;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arch::{self, Legacy};
use crate::kvm::Vm;

/// A device could not be put on the board.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No address or interrupt is left; `validate` should have said so.
    #[error("there is room for {} devices", arch::MAX_DEVICES)]
    Full,
    /// The host lacks something.
    #[error(transparent)]
    Host(#[from] io::Error),
}

/// A board in the making.
pub struct Board<'vm> {
    vm: &'vm Vm,
    slots: Vec<Slot>,
}

/// Where the guest finds a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The address of its registers.
    pub base: u64,
    /// Its interrupt, as KVM's irqfd numbers it.
    pub irq: u32,
}

struct Slot {
    place: Place,
    transport: Arc<Mutex<MmioTransport>>,
}

impl<'vm> Board<'vm> {
    /// An empty board.
    pub fn new(vm: &'vm Vm) -> Self {
        Self {
            vm,
            slots: Vec::new(),
        }
    }

    /// Puts a device on the board, served by `worker`: registers at the next free place, its interrupt as irqfd, its
    /// queues' doorbells as ioeventfds, so that kicks and interrupts do not pass through the monitor.
    ///
    /// # Errors
    /// No room, or KVM refuses.
    pub fn attach(
        &mut self,
        device: Box<dyn VirtioDevice>,
        worker: &WorkerHandle,
    ) -> Result<Arc<Mutex<MmioTransport>>, AttachError> {
        let place = arch::device_place(self.slots.len()).ok_or(AttachError::Full)?;
        let interrupt = EventFd::new(EFD_NONBLOCK)?;
        self.vm
            .fd()
            .register_irqfd(&interrupt, place.irq)
            .map_err(io::Error::from)?;
        let transport =
            MmioTransport::new(device, self.vm.ram().clone(), interrupt, worker.clone())?;
        for (queue, kick) in (0u32..).zip(transport.queue_kicks()) {
            self.vm
                .fd()
                .register_ioevent(
                    kick,
                    &IoEventAddress::Mmio(place.base + QUEUE_NOTIFY),
                    queue,
                )
                .map_err(io::Error::from)?;
        }
        let transport = Arc::new(Mutex::new(transport));
        self.slots.push(Slot {
            place,
            transport: transport.clone(),
        });
        Ok(transport)
    }

    /// Where every device is, in order.
    pub fn places(&self) -> Vec<Place> {
        self.slots.iter().map(|slot| slot.place).collect()
    }

    /// The finished board, for the vCPUs.
    pub fn into_bus(self, legacy: Legacy) -> Bus {
        let transports = self
            .slots
            .into_iter()
            .map(|slot| (slot.place.base, slot.transport))
            .collect();
        Bus { transports, legacy }
    }
}

/// What a write to a port asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortWrite {
    /// Nothing more.
    Done,
    /// The guest resets itself.
    Reset,
}

/// Everything that vCPUs reach by exits.
pub struct Bus {
    /// By address, ascending.
    transports: Vec<(u64, Arc<Mutex<MmioTransport>>)>,
    legacy: Legacy,
}

impl Bus {
    /// A load.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((offset, transport)) => lock(transport).read(offset, data),
            None => self.legacy.read(address, data),
        }
    }

    /// A store.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address) {
            Some((offset, transport)) => lock(transport).write(offset, data),
            None => self.legacy.write(address, data),
        }
    }

    /// The devices that are not virtio.
    pub fn legacy(&self) -> &Legacy {
        &self.legacy
    }

    fn find(&self, address: u64) -> Option<(u64, &Mutex<MmioTransport>)> {
        let after = self
            .transports
            .partition_point(|(base, _)| *base <= address);
        let (base, transport) = self.transports.get(after.checked_sub(1)?)?;
        let offset = address - base;
        (offset < MMIO_REGION_SIZE).then_some((offset, transport))
    }
}

fn lock(transport: &Mutex<MmioTransport>) -> std::sync::MutexGuard<'_, MmioTransport> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}
