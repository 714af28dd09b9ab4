//! Ending virtual hosts, those of earlier runs included: ones that nobody knows any more, ones that hear no signal.

use std::fs;
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::qemu::MARKER;
use crate::workspace::say;

/// Ends a host's QEMU. By force: it has nothing to save, and a wedged one hears nothing else.
pub fn end(pid: i32) -> Result<()> {
    let handle = handle(pid)?;
    kill(Pid::from_raw(pid), Signal::SIGKILL).context("end the virtual host")?;
    let mut watched = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    if poll(&mut watched, PollTimeout::from(30_000_u16))? == 0 {
        bail!("the virtual host's process {pid} did not end within 30 s");
    }
    Ok(())
}

/// Ends the hosts that were booted from the folder `dir` and aren't `known`: a run that was killed in the wrong moment,
/// or whose folder was removed, left them. The caller holds the folder's lock, so none of them is being booted.
pub fn end_strays(dir: &Path, known: Option<i32>) -> Result<()> {
    for process in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = process.file_name().to_string_lossy().parse() else {
            continue;
        };
        if Some(pid) != known && is_host_of(dir, &process.path()) {
            say(&format!(
                "ending a virtual host that an earlier run has left behind, process {pid}"
            ));
            end(pid)?;
        }
    }
    Ok(())
}

/// Whether a process is a QEMU of ours that was started in `dir`, or in a folder of that name which is gone.
fn is_host_of(dir: &Path, process: &Path) -> bool {
    let Ok(command) = fs::read(process.join("cmdline")) else {
        return false;
    };
    let mut words = command.split(|byte| *byte == 0);
    let is_qemu = words
        .next()
        .is_some_and(|program| program.starts_with(b"qemu-system-"));
    let is_ours = words.any(|word| word.starts_with(MARKER.as_bytes()));
    let Ok(place) = fs::read_link(process.join("cwd")) else {
        return false;
    };
    let place = place.to_string_lossy();
    let place = place.strip_suffix(" (deleted)").unwrap_or(&place);
    is_qemu && is_ours && Path::new(place) == dir
}

/// A descriptor that becomes readable when the process ends.
fn handle(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and touches no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(fd)?;
    if fd < 0 {
        return Err(std::io::Error::last_os_error()).context("the virtual host's process");
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command};

    use super::*;

    /// A process that looks like a host of `dir`: only its name and its folder say so.
    fn pretender(dir: &Path, name: &str) -> Child {
        let mut command = Command::new("sh");
        command.arg0("qemu-system-test").current_dir(dir);
        // The shell is asleep in a builtin, so it is the process that was started.
        command.args(["-c", "trap '' TERM; echo; read forever", name]);
        command.stdin(std::process::Stdio::piped());
        command.stdout(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Its first line says that it no longer hears SIGTERM.
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        child
    }

    #[test]
    fn stray_of_this_folder_is_ended_though_it_ignores_sigterm() {
        let dir = tempfile::tempdir().unwrap();
        let mut stray = pretender(dir.path(), "vmbox-host-0123456789ab");
        end_strays(dir.path(), None).unwrap();
        assert!(!stray.wait().unwrap().success());
    }

    #[test]
    fn known_foreign_and_unrelated_processes_are_left_alone() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut known = pretender(dir.path(), "vmbox-host-0123456789ab");
        let mut foreign = pretender(other.path(), "vmbox-host-0123456789ab");
        let mut unrelated = pretender(dir.path(), "somebody's-machine");
        end_strays(dir.path(), i32::try_from(known.id()).ok()).unwrap();
        for child in [&mut known, &mut foreign, &mut unrelated] {
            assert!(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
