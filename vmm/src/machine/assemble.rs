//! VmConfig → Machine, in one screen: read this file first.

use std::io;
use std::sync::Arc;

use kvm_ioctls::Kvm;
use vmbox_config::{ExitReason, VmConfig};
use vmbox_devices::fs;
use vmbox_devices::rng::Rng;
use vmbox_devices::worker::Worker;

use super::board::{AttachError, Board};
use super::validate::{ConfigError, validate};
use super::{Machine, devices};
use crate::arch::{self, Boot, Ports, boot::BootError};
use crate::ending::{Ending, EndingSlot};
use crate::kvm::{self, KvmError, Vm};
use crate::memory::layout::{MIB, Region, WindowsTooLarge, place_windows};
use crate::memory::ram::{self, NoMemory};
use crate::ramoops;
use crate::vcpu::Vcpus;

/// Builds the machine that `config` describes, with its vCPUs parked at the kernel's entry.
///
/// # Errors
/// See [`AssembleError`].
pub fn assemble(config: &VmConfig) -> Result<Machine, AssembleError> {
    validate(config)?;
    let kvm = kvm::open()?;
    let ram_map = arch::ram_map(config.memory_mib);
    let ram = ram::allocate(&ram_map.regions)?;
    let mut vm = Vm::new(&kvm, ram.clone())?;
    arch::prepare_vm(&vm)?;
    let windows = windows(&kvm, &mut vm, ram_map.end, config)?;

    let light = spawn_worker("devices")?;
    let mut workers = Vec::new();
    let mut board = Board::new(&vm);
    let rng = Rng::new().map_err(|source| AssembleError::device("random source".into(), source))?;
    board.attach(Box::new(rng), &light.handle())?;
    // Before the shares: those make the process's umask 0.
    if let Some(vsock) = &config.vsock {
        board.attach(Box::new(devices::vsock(vsock)?), &light.handle())?;
    }
    for (disk, name) in config.disks.iter().zip('a'..) {
        let worker = spawn_worker(&format!("vd{name}"))?;
        board.attach(Box::new(devices::disk(disk)?), &worker.handle())?;
        workers.push(worker);
    }
    let descriptors = fs::descriptors_per_share(config.shares.len());
    for (share, window) in config.shares.iter().zip(windows) {
        let worker = spawn_worker(&format!("fs-{}", share.tag))?;
        board.attach(
            Box::new(devices::share(share, window, descriptors)?),
            &worker.handle(),
        )?;
        workers.push(worker);
    }
    let mut balloon = None;
    if config.balloon {
        let (device, handle) = devices::balloon(&ram);
        board.attach(Box::new(device), &light.handle())?;
        balloon = Some(handle);
    }
    workers.push(light);

    let serial = config
        .serial
        .as_deref()
        .map(|path| devices::serial(&vm, path))
        .transpose()?;
    let command_line = command_line(config, ram_map.ramoops, &board.kernel_options());
    let bus = Arc::new(board.into_bus(Ports::new(serial)));
    let boot = Boot::load(
        &ram,
        &ram_map,
        &config.kernel,
        config.initrd.as_deref(),
        &command_line,
        config.vcpus,
    )?;
    let vcpus = arch::create_vcpus(&kvm, &vm, config.vcpus, &boot)?;
    let ending = Arc::new(EndingSlot::new().map_err(AssembleError::Thread)?);
    let vcpus = Vcpus::spawn(vcpus, &bus, &ending).map_err(AssembleError::Thread)?;
    Ok(Machine::new(
        vm,
        ram,
        ram_map.ramoops,
        bus,
        workers,
        balloon,
        ending,
        vcpus,
    ))
}

/// What every guest is told, then the platform, then devices; the user's own options come last and so win.
fn command_line(config: &VmConfig, log: Region, device_options: &str) -> String {
    // panic=-1: reboot at once, the record is in the log region. trust_cpu: no waiting for entropy before virtio-rng is up.
    let platform = arch::platform_options(config.serial.is_some());
    let log = ramoops::kernel_options(log.base);
    let mut line = format!("panic=-1 random.trust_cpu=on {platform} {log} {device_options}");
    if !config.cmdline.is_empty() {
        line.push(' ');
        line.push_str(&config.cmdline);
    }
    line
}

/// The DAX windows, one place per share, behind the end of RAM.
fn windows(
    kvm: &Kvm,
    vm: &mut Vm,
    ram_end: u64,
    config: &VmConfig,
) -> Result<Vec<Option<vmbox_devices::fs::DaxWindow>>, AssembleError> {
    let lengths: Vec<u64> = config
        .shares
        .iter()
        .map(|share| u64::from(share.dax_window_mib) * MIB)
        .collect();
    let places = place_windows(ram_end, &lengths, arch::guest_phys_bits(kvm)?)?;
    places
        .into_iter()
        .map(|place| {
            (place.length > 0)
                .then(|| devices::dax_window(vm, place))
                .transpose()
        })
        .collect()
}

fn spawn_worker(name: &str) -> Result<Worker, AssembleError> {
    Worker::spawn(name).map_err(AssembleError::Thread)
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The configuration is beyond a limit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The DAX windows are.
    #[error("configuration: {0}")]
    Windows(#[from] WindowsTooLarge),
    /// KVM can't be used.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// No memory.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// Kernel or guest image.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device's file, directory or socket.
    #[error("{what}: {source}")]
    Device {
        /// Which device.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// The board is full, or KVM refused a doorbell.
    #[error("attach a device: {0}")]
    Attach(#[from] AttachError),
    /// A thread or event descriptor.
    #[error("start a thread: {0}")]
    Thread(#[source] io::Error),
}

impl AssembleError {
    pub(super) fn device(what: String, source: io::Error) -> Self {
        Self::Device { what, source }
    }

    /// How this ends the monitor.
    pub fn ending(&self) -> Ending {
        let reason = match self {
            Self::Config(_) | Self::Windows(_) => ExitReason::BadConfig,
            Self::Boot(BootError::CommandLine(_)) => ExitReason::BadConfig,
            Self::Boot(BootError::Tables(_)) | Self::Attach(_) | Self::Thread(_) => {
                ExitReason::HostFailure
            }
            Self::Boot(_) => ExitReason::BadKernel,
            Self::Kvm(_) => ExitReason::NoKvm,
            Self::Memory(_) => ExitReason::NoMemory,
            Self::Device { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::InvalidInput => ExitReason::BadConfig,
                _ => ExitReason::HostFailure,
            },
        };
        let mut message = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            if !message.ends_with(&text) {
                message = format!("{message}: {text}");
            }
            cause = error.source();
        }
        Ending::new(reason, message)
    }
}

#[cfg(test)]
mod tests {
    use vmbox_config::ShareConfig;

    use super::*;

    #[test]
    fn a_missing_shared_directory_is_a_bad_configuration() {
        let config: ShareConfig =
            serde_json::from_str(r#"{"tag":"t","path":"/nowhere/at/all"}"#).unwrap();
        let ending = devices::share(&config, None, 1000).err().unwrap().ending();
        assert_eq!(ending.reason, ExitReason::BadConfig);
        assert!(
            ending.message.contains("/nowhere/at/all"),
            "{}",
            ending.message
        );
    }
}
