//! What booting has in common on every architecture: recognising files, the guest image, the errors.

mod initrd;
pub mod kernel_file;

use std::io;
use std::path::{Path, PathBuf};

use kvm_ioctls::VcpuFd;

pub use initrd::load_initrd;

use crate::arch;
use crate::kvm::KvmError;
use crate::machine::board::Place;

/// What the kernel has to be told of its machine.
pub struct Description<'a> {
    /// Its command line.
    pub command_line: &'a str,
    /// Its processors.
    pub vcpus: &'a [VcpuFd],
    /// Where its virtio devices are, in order.
    pub devices: &'a [Place],
    /// Whether there is a serial console.
    pub serial: bool,
}

/// The kernel or the guest image can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be opened or read.
    #[error("{what} {path}: {source}")]
    Read {
        /// "kernel" or "guest image".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is no kernel that we can boot.
    #[error("kernel {path} {why}; {needed} is needed", needed = arch::KERNEL_NEEDED)]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The guest image's /init can't run on this machine.
    #[error(
        "guest image {path} has an /init for {machine}; one for {} is needed",
        arch::MACHINE
    )]
    WrongImage {
        /// Which file.
        path: PathBuf,
        /// What it is for.
        machine: String,
    },
    /// It does not fit.
    #[error("{what} {path} does not fit into {ram_mib} MiB of guest memory; raise memory_mib")]
    TooLarge {
        /// "kernel" or "guest image".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Low RAM.
        ram_mib: u64,
    },
    /// The kernel would cut it off.
    #[error("the kernel command line has {0} bytes, at most {max} fit; shorten cmdline or attach fewer devices", max = arch::COMMAND_LINE_SIZE - 1)]
    CommandLine(usize),
    /// The tables that describe the machine can't be made or written; the address map is wrong.
    #[error("write the boot tables into guest memory: {0}")]
    Tables(String),
    /// A processor can't be asked.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// Names the file of a failed read.
pub(crate) fn read_error<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> BootError + Copy + 'a {
    move |source| BootError::Read {
        what,
        path: path.into(),
        source,
    }
}
