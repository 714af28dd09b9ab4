//! A user namespace that nothing runs in: how the kernel is told a mount's mappings (mount_setattr(2), MOUNT_ATTR_IDMAP).
//!
//! Only a process can bring one into being: one is forked for that, and ends when its namespace has been opened.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxIdMapping;
use rustix::{
    io::{Errno, retry_on_intr},
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid},
};

use super::idmap::IdMap;

/// Makes one with these mappings. It lasts as long as the descriptor, and as mounts that are mapped by it.
///
/// # Errors
/// Not privileged, no room for one more, or mappings that the kernel doesn't take.
pub fn with(map: &IdMap) -> io::Result<OwnedFd> {
    let (end, alive) = pipe_with(PipeFlags::CLOEXEC)?;
    let pid = fork_into_one(&end)?;
    let made = open(pid, map);
    drop(alive);
    // It fails only if SIGCHLD is ignored, and then nothing is left to be waited for.
    let _ = retry_on_intr(|| waitpid(Some(pid), WaitOptions::empty()));
    made
}

fn open(pid: Pid, map: &IdMap) -> io::Result<OwnedFd> {
    let process = Path::new("/proc").join(number_in_proc(pid)?);
    write_map(process.join("uid_map"), &map.uids)?;
    write_map(process.join("gid_map"), &map.gids)?;
    Ok(File::open(process.join("ns/user"))?.into())
}

/// A keeper has a PID namespace of its own, and yet the host's /proc: there its children have other numbers.
fn number_in_proc(pid: Pid) -> io::Result<String> {
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", process.as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    number
        .map(|number| number.trim().to_owned())
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// In one write(2), as user_namespaces(7) has it.
fn write_map(file: PathBuf, lines: &[LinuxIdMapping]) -> io::Result<()> {
    let lines = lines.iter().map(|line| {
        let (inside, outside) = (line.container_id(), line.host_id());
        format!("{inside} {outside} {}\n", line.size())
    });
    let text: String = lines.collect();
    if text.len() >= rustix::param::page_size() {
        let why = "the mappings are longer than Linux takes: a page of text";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    fs::write(file, text)
}

/// Forks a process into a user namespace of its own, where it waits for the end of the pipe and ends.
fn fork_into_one(end: &OwnedFd) -> io::Result<Pid> {
    let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: with these flags and no stack it is fork(2): the child goes on with a copy of our memory, and does what the child
    // of many threads may do, system calls alone, until it ends in `wait_and_end`.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
    if pid == 0 {
        wait_and_end(end);
    }
    let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0);
    pid.and_then(Pid::from_raw).ok_or_else(why_not)
}

/// clone(2) says of a limit that there is no space left.
fn why_not() -> io::Error {
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOSPC) => io::Error::other(
            "no more user namespaces are allowed (sysctl user.max_user_namespaces)",
        ),
        _ => error,
    }
}

/// With no descriptor but its own: an end of another thread's pipe among those that were inherited would keep that one's
/// child waiting for this one, and perhaps this one for that.
fn wait_and_end(end: &OwnedFd) -> ! {
    let none: libc::c_uint = 0;
    // It fails for no descriptor that is open.
    let _ = rustix::stdio::dup2_stdin(end);
    // SAFETY: integers; this process, which is all alone, uses none of the descriptors that are closed.
    unsafe { libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, none) };
    while rustix::io::read(rustix::stdio::stdin(), &mut [0; 1]) == Err(Errno::INTR) {}
    // SAFETY: it runs nothing of what was to be run at our own exit.
    unsafe { libc::_exit(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_make_some_at_once_do_not_wait_for_one_another() {
        let line = serde_json::json!({ "containerID": 0, "hostID": 100_000, "size": 65536 });
        let lines = serde_json::json!([line]);
        let map = serde_json::json!({ "uids": lines, "gids": lines, "recursive": false });
        let map: IdMap = serde_json::from_value(map).unwrap();
        let allowed = with(&map).is_ok();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!((0..50).all(|_| with(&map).is_ok() == allowed)));
            }
        });
    }

    #[test]
    fn a_page_of_mappings_is_too_much() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = serde_json::json!({ "containerID": 1_000_000_000 });
        let line: LinuxIdMapping = serde_json::from_value(line).unwrap();
        let many = vec![line; rustix::param::page_size() / 15 + 1];
        let error = write_map(file.path().into(), &many).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        write_map(file.path().into(), &many[..2]).unwrap();
        let text = fs::read_to_string(file.path()).unwrap();
        assert_eq!(text, "1000000000 0 0\n1000000000 0 0\n");
    }
}
