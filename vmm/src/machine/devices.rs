//! Builds each device of a configuration from its files and sockets: the glue between VmConfig and `vmbox_devices`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use vm_memory::GuestAddress;
use vmbox_config::{DiskConfig, ShareConfig, VsockConfig};
use vmbox_devices::balloon::{self, BalloonHandle, Reclaim};
use vmbox_devices::blk::Blk;
use vmbox_devices::device::GuestRam;
use vmbox_devices::fs::{DaxMapper, DaxWindow, Fs, FsConfig, FsError};
use vmbox_devices::legacy::serial::Serial;
use vmbox_devices::vsock::Vsock;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::assemble::AssembleError;
use crate::arch::SERIAL_IRQ;
use crate::kvm::Vm;
use crate::memory::advise;
use crate::memory::dax::Reservation;
use crate::memory::layout::Region;

/// Where the main thread sets the balloon's size.
pub struct Balloon(BalloonHandle);

impl Balloon {
    /// Asks the guest for this many MiB.
    pub fn set_target(&self, mib: u32) {
        self.0.set_target_mib(mib);
    }

    /// What it has given.
    pub fn actual_mib(&self) -> u32 {
        self.0.actual_mib()
    }
}

/// Gives RAM back to the host.
pub struct ReclaimRam(pub GuestRam);

impl Reclaim for ReclaimRam {
    fn reclaim(&self, address: GuestAddress, length: u64) -> io::Result<()> {
        advise::give_back(&self.0, address.0, length)
    }
}

struct WindowMapper(Arc<Reservation>);

impl DaxMapper for WindowMapper {
    fn map(
        &self,
        file: BorrowedFd<'_>,
        file_offset: u64,
        window_offset: u64,
        length: u64,
        writable: bool,
    ) -> io::Result<()> {
        self.0
            .map_file(window_offset, length, file, file_offset, writable)
    }

    fn unmap(&self, window_offset: u64, length: u64) -> io::Result<()> {
        self.0.unmap(window_offset, length)
    }
}

/// The balloon and its handle.
pub fn balloon(ram: &GuestRam) -> (balloon::Balloon, Balloon) {
    let device = balloon::Balloon::new(Arc::new(ReclaimRam(ram.clone())));
    let handle = Balloon(device.handle());
    (device, handle)
}

/// A disk.
pub fn disk(config: &DiskConfig) -> Result<Blk, AssembleError> {
    let what = || format!("disk {}", config.path.display());
    let file = OpenOptions::new()
        .read(true)
        .write(!config.read_only)
        .open(&config.path)
        .map_err(|source| AssembleError::device(what(), source))?;
    Blk::new(file, config.read_only, &config.serial)
        .map_err(|source| AssembleError::device(what(), source))
}

/// A share that may hold so many descriptors, of a guest with so much RAM; `window` is where its DAX window goes, if it has
/// one.
pub fn share(
    config: &ShareConfig,
    window: Option<DaxWindow>,
    descriptors: usize,
    ram: Arc<AtomicU64>,
) -> Result<Fs, AssembleError> {
    Fs::new(FsConfig {
        tag: config.tag.clone(),
        root: config.path.clone(),
        dax: window,
        descriptors,
        ram,
    })
    .map_err(|error| {
        // The kind tells a wrong path from a failing host.
        let kind = match &error {
            FsError::Root { source, .. } => source.kind(),
            FsError::Tag(_) | FsError::Window(_) => io::ErrorKind::InvalidInput,
            FsError::Proc(_) => io::ErrorKind::Other,
        };
        AssembleError::device(
            format!("share {}", config.path.display()),
            io::Error::new(kind, error),
        )
    })
}

/// Reserves a window and shows it to the guest.
pub fn dax_window(vm: &mut Vm, place: Region) -> Result<DaxWindow, AssembleError> {
    let reserve = |source| AssembleError::device("DAX window".into(), source);
    let length = usize::try_from(place.length).map_err(|e| reserve(io::Error::other(e)))?;
    let reservation = Arc::new(Reservation::new(length).map_err(reserve)?);
    vm.map_window(place.base, &reservation)?;
    Ok(DaxWindow {
        base: place.base,
        length: place.length,
        mapper: Arc::new(WindowMapper(reservation)),
    })
}

/// The vsock device, listening.
pub fn vsock(config: &VsockConfig) -> Result<Vsock, AssembleError> {
    Vsock::new(u64::from(config.guest_cid), config.socket.clone()).map_err(|source| {
        AssembleError::device(format!("vsock socket {}", config.socket.display()), source)
    })
}

/// The serial console, writing to the end of a file, FIFO (with a reader) or terminal. What these don't take at once
/// is lost.
pub fn serial(vm: &Vm, path: &Path) -> Result<Serial, AssembleError> {
    let failed =
        |source| AssembleError::device(format!("serial console {}", path.display()), source);
    let output = open_output(path).map_err(failed)?;
    let irq = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
    vm.fd()
        .register_irqfd(&irq, SERIAL_IRQ)
        .map_err(|errno| failed(io::Error::from(errno)))?;
    Ok(Serial::new(Box::new(output), irq))
}

fn open_output(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        // The umask is 0 by now if there is a share.
        .mode(0o600)
        // A FIFO or terminal that nobody empties must not hold a vCPU; O_NOCTTY: nor may one send us signals.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_serial_fifo_that_nobody_empties_does_not_block() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        let _reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        let mut output = open_output(&path).unwrap();
        let error = output.write_all(&vec![b'x'; 4 << 20]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
