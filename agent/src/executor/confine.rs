//! The last privileges of a process that is about to run its program: capabilities and the system call filter.

use std::path::Path;

use libcontainer::capabilities;
use libcontainer::syscall::Syscall;

use super::{Failure, seccomp};
use crate::spec::Confinement;

/// In a container's bundle.
pub const FILE: &str = "confinement.json";

/// What the container in `bundle` is confined by.
///
/// # Errors
/// The file can't be read.
pub fn read(bundle: &Path) -> Result<Confinement, Failure> {
    super::read_json(&bundle.join(FILE))
}

/// Drops capabilities, and before them loads the filter if only a privileged process may (config-linux.md#seccomp).
///
/// # Errors
/// Which of the two can't be had.
pub fn drop_privileges(confinement: &Confinement, syscall: &dyn Syscall) -> Result<(), Failure> {
    capabilities::reset_effective(syscall).map_err(|e| Failure::of("capabilities", e))?;
    if !confinement.gains_no_privileges {
        filter(confinement)?;
    }
    capabilities::drop_privileges(&confinement.capabilities, syscall)
        .map_err(|e| Failure::of("capabilities", e))
}

/// Loads the filter if nobody need be privileged for that: it is for the program, and need not know our calls.
///
/// # Errors
/// It can't be had.
pub fn filter_late(confinement: &Confinement) -> Result<(), Failure> {
    if confinement.gains_no_privileges {
        filter(confinement)
    } else {
        Ok(())
    }
}

fn filter(confinement: &Confinement) -> Result<(), Failure> {
    match &confinement.seccomp {
        Some(profile) => seccomp::filter(profile).map_err(|e| Failure::of("seccomp", e)),
        None => Ok(()),
    }
}
