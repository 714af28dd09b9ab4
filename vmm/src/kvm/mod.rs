//! KVM itself: opening it with errors that say what to do, and the VM with its memory slots.

mod vm;

use std::io;

use kvm_ioctls::{Cap, Kvm};

pub use vm::Vm;

use crate::arch;

/// KVM can't be used. Each text says what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no device node.
    #[error("/dev/kvm does not exist: {}", arch::KVM_HINT)]
    NoDevice,
    /// The device node is there, but not for us.
    #[error(
        "/dev/kvm can't be opened: permission denied; add the user to the group that owns it (usermod -aG kvm USER) or run as root"
    )]
    NoPermission,
    /// Another hypervisor holds the processor's virtualization.
    #[error(
        "{what}: device or resource busy; another hypervisor (VirtualBox, Xen, …) holds the processor's virtualization, stop it"
    )]
    Busy {
        /// What was being done.
        what: &'static str,
    },
    /// The kernel's KVM speaks another version of its interface.
    #[error("/dev/kvm speaks version {0} of its interface, 12 is needed; use a newer kernel")]
    Version(i32),
    /// KVM lacks something that we can't do without.
    #[error("this kernel's KVM lacks {0}; use Linux 5.4 or newer")]
    Lacks(&'static str),
    /// The hardware lacks something that KVM can't make up for.
    #[error("this machine can't run guests: {0}")]
    Unfit(&'static str),
    /// Anything else.
    #[error("{what}")]
    Failed {
        /// What was being done.
        what: &'static str,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl KvmError {
    /// Names what was being done when KVM answered with an errno.
    pub(crate) fn during(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |errno| match errno.errno() {
            libc::EBUSY => Self::Busy { what },
            errno => Self::Failed {
                what,
                source: io::Error::from_raw_os_error(errno),
            },
        }
    }
}

/// Capabilities that everything here rests on.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Opens /dev/kvm and checks that it can do what the monitor needs.
///
/// # Errors
/// See [`KvmError`].
pub fn open() -> Result<Kvm, KvmError> {
    let kvm = Kvm::new().map_err(|errno| match errno.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::NoDevice,
        libc::EACCES | libc::EPERM => KvmError::NoPermission,
        _ => KvmError::during("open /dev/kvm")(errno),
    })?;
    match kvm.get_api_version() {
        12 => {}
        version => return Err(KvmError::Version(version)),
    }
    for (cap, name) in NEEDED {
        if !kvm.check_extension(cap) {
            return Err(KvmError::Lacks(name));
        }
    }
    Ok(kvm)
}
