//! The two calls of bpf(2) that put a device program on a cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use super::devices::Instruction;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes those that are missing for zero.
#[repr(C)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
}

/// `union bpf_attr` for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replaced: u32,
}

/// A device program that the kernel has checked and holds for as long as this lives or a cgroup uses it.
#[derive(Debug)]
pub struct Program {
    fd: OwnedFd,
}

impl Program {
    /// Gives a program to the kernel.
    ///
    /// # Errors
    /// The kernel has no BPF, or rejects the program.
    pub fn load(instructions: &[Instruction]) -> io::Result<Self> {
        let license = c"GPL";
        let request = Load {
            program_type: TYPE_CGROUP_DEVICE,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: license.as_ptr() as u64,
        };
        // SAFETY: the request, the instructions and the license live across the call, and the count is theirs.
        let fd = Errno::result(unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_LOAD,
                &raw const request,
                size_of::<Load>(),
            )
        })?;
        // SAFETY: made in the call above, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        Ok(Self { fd })
    }

    /// Puts it on a cgroup, in one step in the place of another that is there.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, replaced: Option<&Self>) -> io::Result<()> {
        let request = Attach {
            target: cgroup.as_raw_fd() as u32,
            program: self.fd.as_raw_fd() as u32,
            attach_type: CGROUP_DEVICE,
            flags: ALLOW_MULTI | replaced.map_or(0, |_| REPLACE),
            replaced: replaced.map_or(0, |old| old.fd.as_raw_fd() as u32),
        };
        // SAFETY: the request lives across the call, its descriptors too.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_bpf,
                PROG_ATTACH,
                &raw const request,
                size_of::<Attach>(),
            )
        })?;
        Ok(())
    }
}
