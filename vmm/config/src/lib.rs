//! What a VM is, and what can be said to a running monitor: plain data, the contract between the host library and `vmbox-vmm`.
//!
//! `vmbox-vmm --config FILE` (or `--config-fd N`) reads one [`VmConfig`] as JSON, boots it, and lives until the guest ends.
//! Its control socket takes one [`Control`] per line and answers each with one [`Reply`] line; its event descriptor
//! carries one [`Event`] per line.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod mac;

use std::path::PathBuf;

pub use mac::{BadMac, Mac};
use serde::{Deserialize, Serialize};

/// Everything the monitor needs to know. Unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Virtual CPUs, 1 to 32.
    pub vcpus: u8,
    /// Of these, how many the kernel brings up at boot; the guest may do so with the others later. Absent: all.
    #[serde(default)]
    pub online_vcpus: Option<u8>,
    /// Guest RAM in MiB, 32 to 65536.
    pub memory_mib: u32,
    /// How much more the guest can be given later, in MiB, 0 to 65536: see [`Control::Memory`]. Rounded down to 128 MiB, and to
    /// what fits into the guest's address space.
    #[serde(default)]
    pub extra_memory_mib: u32,
    /// The guest kernel: an uncompressed ELF vmlinux on x86_64, an Image on aarch64.
    pub kernel: PathBuf,
    /// The guest image, loaded as initramfs.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// Appended to the kernel command line that the monitor makes itself.
    #[serde(default)]
    pub cmdline: String,
    /// virtio-fs shares.
    #[serde(default)]
    pub shares: Vec<ShareConfig>,
    /// virtio-blk disks, in the order of `/dev/vda`, `/dev/vdb`, …
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// virtio-net: slots, empty at boot. See [`Control::AttachNic`].
    #[serde(default)]
    pub nics: Vec<NicConfig>,
    /// virtio-vsock.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// virtio-balloon with free-page reporting.
    #[serde(default)]
    pub balloon: bool,
    /// The debug serial console: where its output goes. Absent (the default): there is no serial port at all.
    #[serde(default)]
    pub serial: Option<PathBuf>,
    /// Path of the control socket to listen on.
    #[serde(default)]
    pub control: Option<PathBuf>,
    /// An inherited descriptor to which [`Event`] lines are written.
    #[serde(default)]
    pub event_fd: Option<i32>,
    /// An inherited descriptor (pipe or socket) whose end of file means that the owner is gone: the monitor stops.
    /// A monitor that has it ignores SIGTERM, SIGINT and SIGHUP.
    #[serde(default)]
    pub lifeline_fd: Option<i32>,
}

/// One directory of the host that the guest may mount by its tag (virtio 1.2 §5.11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareConfig {
    /// Mount tag, 1 to 36 bytes of UTF-8.
    pub tag: String,
    /// The directory on the host.
    pub path: PathBuf,
    /// Size of the DAX window in MiB, a multiple of 2; 0 for none. The guest pays 1.6 % of it in `struct page`s.
    #[serde(default)]
    pub dax_window_mib: u32,
}

/// One disk, backed by a file or block device (virtio 1.2 §5.2).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The raw image.
    pub path: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Serial number that the guest can read, at most 20 bytes.
    #[serde(default)]
    pub serial: String,
}

/// A slot for a NIC, its link down until a tap is put into it (virtio 1.2 §5.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// The address that the guest finds the slot by. It may use another one: whatever it sends is sent.
    pub mac: Mac,
    /// The most that the guest may set, in bytes, 68 to 65535; absent: what it likes.
    #[serde(default)]
    pub mtu: Option<u16>,
}

/// The vsock device (virtio 1.2 §5.10). Guest connections to host port P arrive at the Unix socket `<socket>_P`;
/// a host program connects to `<socket>`, writes `CONNECT P\n` and reads `OK <port>\n`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, 3 or more.
    pub guest_cid: u32,
    /// Path of the listening Unix socket.
    pub socket: PathBuf,
}

/// A request on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// Stop all vCPUs from running; answered when they have stopped.
    Pause,
    /// Let them run again.
    Resume,
    /// End the VM now, without asking the guest.
    Stop,
    /// Report [`Stats`].
    Stats,
    /// Give this many MiB back to the host (virtio-balloon's target).
    Balloon {
        /// Size of the balloon in MiB; 0 deflates it.
        target_mib: u32,
    },
    /// Have the guest use this many MiB beside those that it booted with (virtio-mem's requested size). For more than it has
    /// now, the answer comes when it has taken them; for less it comes at once, and the guest gives back what it can.
    Memory {
        /// At most [`VmConfig::extra_memory_mib`].
        extra_mib: u32,
    },
    /// Put a tap into a NIC slot: the guest's link comes up. Its descriptor comes with the line (SCM_RIGHTS, unix(7)); the tap
    /// has IFF_NO_PI and IFF_VNET_HDR.
    AttachNic {
        /// Index into [`VmConfig::nics`].
        slot: u8,
    },
    /// Empty a NIC slot: the guest's link goes down, and the monitor closes the tap.
    DetachNic {
        /// Index into [`VmConfig::nics`].
        slot: u8,
    },
}

/// The answer to a [`Control`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// Done.
    Ok,
    /// The counters asked for.
    Stats(Stats),
    /// It could not be done.
    Error {
        /// Why, in one line.
        message: String,
    },
}

/// Counters of a running VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// Microseconds since `vmbox-vmm` started.
    pub uptime_us: u64,
    /// Whether the vCPUs are paused.
    pub paused: bool,
    /// vCPU exits to the monitor, of all vCPUs.
    pub exits: u64,
    /// Exits for memory-mapped registers.
    pub mmio_exits: u64,
    /// Exits for I/O ports.
    pub pio_exits: u64,
    /// The balloon's size in MiB.
    pub balloon_mib: u32,
    /// What the guest uses beside the memory that it booted with, in MiB.
    pub extra_mib: u32,
}

/// What the monitor reports of itself, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A phase of the boot is over. `at_ns` is CLOCK_MONOTONIC.
    Phase {
        /// Which phase.
        phase: Phase,
        /// CLOCK_MONOTONIC in nanoseconds.
        at_ns: u64,
    },
    /// The VM has ended; the last line ever written.
    Exit {
        /// Why.
        reason: ExitReason,
        /// One line for people: the cause and what to do.
        message: String,
        /// The last lines of the guest kernel's log, oldest first, at most 4 KiB.
        guest_log: Vec<String>,
    },
}

/// The phases of a boot, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `main` was entered.
    MonitorStarted,
    /// The VM, its memory and its vCPUs exist in KVM.
    KvmReady,
    /// The first vCPU is about to run.
    KernelEntry,
}

/// Why a VM ended. Each has an exit status of `vmbox-vmm` of its own: see [`ExitReason::status`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered off or rebooted in an orderly way, or [`Control::Stop`] was asked for.
    Ended,
    /// The configuration can't be used.
    BadConfig,
    /// The kernel or guest image can't be read or is not what it should be.
    BadKernel,
    /// The memory asked for can't be had.
    NoMemory,
    /// There is no KVM, or it can't run guests.
    NoKvm,
    /// Something else on the host failed.
    HostFailure,
    /// The guest kernel panicked.
    GuestPanic,
    /// A vCPU shut down without warning (triple fault), or KVM could not go on.
    TripleFault,
    /// The owner's end of the lifeline closed.
    Orphaned,
}

impl ExitReason {
    /// The exit status of the `vmbox-vmm` process.
    pub const fn status(self) -> u8 {
        match self {
            Self::Ended => 0,
            Self::BadConfig => 2,
            Self::BadKernel => 3,
            Self::NoMemory => 4,
            Self::NoKvm => 5,
            Self::HostFailure => 6,
            Self::GuestPanic => 10,
            Self::TripleFault => 11,
            Self::Orphaned => 12,
        }
    }
}
