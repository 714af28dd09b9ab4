//! VmConfig → Machine, in one screen: read this file first.

use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use vmbox_config::{ExitReason, VmConfig};
use vmbox_devices::fs::{self, DaxWindow};
use vmbox_devices::rng::Rng;
use vmbox_devices::worker::Worker;

use super::board::{AttachError, Board, Place};
use super::extra::{self, Extra, RamSize};
use super::nics::Nics;
use super::validate::{ConfigError, validate};
use super::{Machine, devices};
use crate::arch::{self, Boot, Legacy, Processor};
use crate::boot::{BootError, Description};
use crate::ending::{Ending, EndingSlot};
use crate::kvm::{self, KvmError, Vm};
use crate::memory::layout::{MIB, Region, TooHigh, place_windows};
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
    let processor = Processor::of(&kvm)?;
    let windows = place_windows(ram_map.end, &window_lengths(config), processor.phys_bits())?;
    let end = windows.last().map_or(ram_map.end, Region::end);
    let extra_place = extra::place(end, config.extra_memory_mib, processor.phys_bits());
    let end = extra_place.as_ref().map_or(end, Region::end);
    let ram = ram::allocate_with_spare(&ram_map.regions, extra_place)?;
    let mut vm = Vm::new(&kvm, processor.vm_type(end), ram.clone())?;
    // Before any device: on aarch64 interrupts need the controller, and the controller the vCPUs.
    let vcpus = processor.create_vcpus(&vm, config.vcpus)?;
    let windows = map_windows(&mut vm, windows)?;
    let boot = Boot::load(&ram, &ram_map, &config.kernel, config.initrd.as_deref())?;

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
    let ram_size = RamSize::new(u64::from(config.memory_mib) * MIB);
    for (share, window) in config.shares.iter().zip(windows) {
        let worker = spawn_worker(&format!("fs-{}", share.tag))?;
        board.attach(
            Box::new(devices::share(
                share,
                window,
                descriptors,
                ram_size.watch(),
            )?),
            &worker.handle(),
        )?;
        workers.push(worker);
    }
    let mut nics = Nics::default();
    if !config.nics.is_empty() {
        let worker = spawn_worker("net")?;
        for nic in &config.nics {
            board.attach(Box::new(nics.add(nic)?), &worker.handle())?;
        }
        workers.push(worker);
    }
    let mut balloon = None;
    if config.balloon {
        let (device, handle) = devices::balloon(&ram);
        board.attach(Box::new(device), &light.handle())?;
        balloon = Some(handle);
    }
    let mut extra = None;
    if let Some(place) = extra_place {
        let (device, hand) = Extra::new(place, &ram)
            .map_err(|source| AssembleError::device("extra memory".into(), source))?;
        board.attach(Box::new(device), &light.handle())?;
        extra = Some(hand);
    }
    workers.push(light);

    let serial = config
        .serial
        .as_deref()
        .map(|path| devices::serial(&vm, path))
        .transpose()?;
    let places = board.places();
    boot.describe(
        &ram,
        &ram_map,
        &Description {
            command_line: &command_line(config, processors(), ram_map.ramoops, &places),
            vcpus: &vcpus,
            devices: &places,
            serial: serial.is_some(),
        },
    )?;
    boot.enter(&vcpus)?;
    let bus = Arc::new(board.into_bus(Legacy::new(serial)));
    let ending = Arc::new(EndingSlot::new().map_err(AssembleError::Thread)?);
    let vcpus = Vcpus::spawn(vcpus, &bus, &ending).map_err(AssembleError::Thread)?;
    Ok(Machine::new(
        vm,
        ram,
        ram_map.ramoops,
        bus,
        workers,
        balloon,
        extra,
        ram_size,
        nics,
        ending,
        vcpus,
    ))
}

/// How many processors this process may use.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// What every guest is told, then platform and devices; the user's own options come last and so win.
fn command_line(config: &VmConfig, processors: usize, log: Region, devices: &[Place]) -> String {
    // panic=-1: reboot at once, the record is in the log region. trust_cpu: no waiting for entropy before virtio-rng is up.
    let platform = arch::kernel_options(config.serial.is_some(), devices);
    let log = ramoops::kernel_options(log.base);
    let mut line = format!("panic=-1 random.trust_cpu=on {log} {platform}");
    let online = config.online_vcpus.unwrap_or(config.vcpus);
    if online < config.vcpus {
        line.push_str(&format!(" maxcpus={online}"));
    }
    // x86 kernels start all CPUs at once, and each spins until its turn: on too few processors, that leaves none for the
    // one whose turn it is.
    if usize::from(online) > processors {
        line.push_str(" cpuhp.parallel=0");
    }
    if config.extra_memory_mib > 0 {
        // Plugged memory is to be used, most of it for what can be moved, so that it can be unplugged again.
        line.push_str(" memhp_default_state=online memory_hotplug.online_policy=auto-movable");
    }
    if !config.cmdline.is_empty() {
        line.push(' ');
        line.push_str(&config.cmdline);
    }
    line
}

/// One DAX window per share, in bytes.
fn window_lengths(config: &VmConfig) -> Vec<u64> {
    config
        .shares
        .iter()
        .map(|share| u64::from(share.dax_window_mib) * MIB)
        .collect()
}

fn map_windows(vm: &mut Vm, places: Vec<Region>) -> Result<Vec<Option<DaxWindow>>, AssembleError> {
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
    /// RAM or DAX windows are beyond what this machine's guests can address.
    #[error("configuration: {0}")]
    TooHigh(#[from] TooHigh),
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
            Self::Config(_) | Self::TooHigh(_) => ExitReason::BadConfig,
            Self::Boot(BootError::CommandLine(_)) => ExitReason::BadConfig,
            Self::Boot(BootError::Tables(_)) | Self::Attach(_) | Self::Thread(_) => {
                ExitReason::HostFailure
            }
            Self::Boot(BootError::Kvm(_)) | Self::Kvm(_) => ExitReason::NoKvm,
            Self::Boot(_) => ExitReason::BadKernel,
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
        let ending = devices::share(&config, None, 1000, Arc::default())
            .err()
            .unwrap()
            .ending();
        assert_eq!(ending.reason, ExitReason::BadConfig);
        assert!(
            ending.message.contains("/nowhere/at/all"),
            "{}",
            ending.message
        );
    }

    fn line_for(vcpus: u8, processors: usize) -> String {
        line_of(
            &format!(r#"{{"vcpus":{vcpus},"memory_mib":64,"kernel":"/k"}}"#),
            processors,
        )
    }

    fn line_of(json: &str, processors: usize) -> String {
        let config: VmConfig = serde_json::from_str(json).unwrap();
        let log = Region { base: 0, length: 0 };
        command_line(&config, processors, log, &[])
    }

    #[test]
    fn cpus_start_one_by_one_only_where_they_would_spin_for_each_other() {
        let one_by_one =
            |vcpus, processors| line_for(vcpus, processors).contains("cpuhp.parallel=0");
        assert!(one_by_one(3, 2));
        assert!(!one_by_one(2, 2));
        assert!(!one_by_one(1, 1));
    }

    #[test]
    fn cpus_that_are_not_to_be_online_are_left_alone_at_boot() {
        let line = line_of(
            r#"{"vcpus":4,"online_vcpus":1,"memory_mib":64,"kernel":"/k"}"#,
            1,
        );
        assert!(line.contains(" maxcpus=1"), "{line}");
        assert!(!line.contains("cpuhp"), "{line}");
        assert!(!line_for(4, 4).contains("maxcpus"));
    }
}
