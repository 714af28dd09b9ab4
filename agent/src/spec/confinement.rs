//! What keeps a container's first process from the kernel: taken out of what libcontainer gets, and applied by the executor.

use libcontainer::oci_spec::runtime::{Linux, LinuxCapabilities, LinuxSeccomp, Process};
use serde::{Deserialize, Serialize};

use super::named_capabilities;

/// Capabilities and system call filter. libcontainer 0.7 can't have the filter that we want, and would drop the capabilities with which it
/// is loaded before it lets us do that.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Confinement {
    pub capabilities: LinuxCapabilities,
    /// `noNewPrivileges`: then a filter can be loaded without any capability, and as late as can be.
    pub gains_no_privileges: bool,
    pub seccomp: Option<LinuxSeccomp>,
}

impl Confinement {
    /// Of a process in a container with this profile.
    pub fn of(process: &Process, seccomp: Option<LinuxSeccomp>) -> Self {
        Self {
            capabilities: named_capabilities(process.capabilities().as_ref()),
            gains_no_privileges: process.no_new_privileges() == Some(true),
            seccomp,
        }
    }

    /// Of a container's first process; libcontainer will leave it all its capabilities.
    pub(super) fn take(process: &mut Process, linux: &mut Linux) -> Self {
        let taken = Self::of(process, linux.seccomp().clone());
        process.set_capabilities(None);
        linux.set_seccomp(None);
        taken
    }
}
