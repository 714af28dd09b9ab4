//! `exec`: another process in a running container.
//!
//! Ours, not libcontainer's tenant builder (0.7): that one leaves out the user namespace (the process would be root of the guest),
//! drops the container's seccomp filter, and fails in a container whose cgroup has children.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::syscall::Syscall;
use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::unistd::{Gid, Uid};

use super::channel::{Channel, send_on};
use super::{Failure, Report, Request, confine, read_json, scheduling, workload};
use crate::spec::Confinement;
use crate::stdio::TerminalMode;

/// Names in /proc/PID/ns and what setns(2) calls them.
const NAMESPACES: &[(&str, libc::c_int)] = &[
    ("user", libc::CLONE_NEWUSER),
    ("mnt", libc::CLONE_NEWNS),
    ("pid", libc::CLONE_NEWPID),
    ("net", libc::CLONE_NEWNET),
    ("ipc", libc::CLONE_NEWIPC),
    ("uts", libc::CLONE_NEWUTS),
    ("cgroup", libc::CLONE_NEWCGROUP),
    ("time", 0x80),
];

/// Makes the process and reports it.
pub fn exec(channel: &Channel, request: &Request, stdio: Vec<OwnedFd>) -> Result<(), Failure> {
    let Request::Exec {
        init_pid,
        bundle,
        process,
        cgroup,
        place,
        terminal,
        owner_uid,
    } = request
    else {
        return Err(Failure::other("not an exec"));
    };
    let process: Process = read_json(Path::new(process))?;
    let spec: Spec = read_json(&Path::new(bundle).join("config.json"))?;
    let seccomp = confine::read(Path::new(bundle))?.seccomp;
    let syscall = create_syscall();

    let score = process.oom_score_adj().unwrap_or(0);
    fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(|e| Failure::of("set oom_score_adj", e))?;
    let affinity = process.exec_cpu_affinity().clone().unwrap_or_default();
    scheduling::set_affinity("initial", affinity.initial().as_deref())?;
    match place {
        Some(place) => join(&below(Path::new(cgroup), place))?,
        None => join_cgroup(Path::new(cgroup), *init_pid)?,
    }
    scheduling::set_affinity("final", affinity.cpu_affinity_final().as_deref())?;
    scheduling::set_io_priority(process.io_priority().as_ref())?;
    scheduling::set_scheduler(process.scheduler().as_ref())?;
    let personality = spec.linux().as_ref().and_then(|l| l.personality().as_ref());
    scheduling::set_personality(personality)?;
    for limit in process.rlimits().iter().flatten() {
        syscall
            .set_rlimit(limit)
            .map_err(|e| Failure::of("set rlimit", e))?;
    }
    // From here on a process of the container could look into this one, which still holds the agent's files.
    // SAFETY: prctl(PR_SET_DUMPABLE) takes one integer.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
        .map_err(|e| Failure::of("prctl", e))?;
    join_namespaces(*init_pid)?;

    // Only a child is in the PID namespace that was joined.
    // SAFETY: the executor has one thread, so the child may run any code.
    match Errno::result(unsafe { libc::fork() }).map_err(|e| Failure::of("fork", e))? {
        0 => {
            let child = Child {
                process: &process,
                confinement: Confinement::of(&process, seccomp),
                syscall: syscall.as_ref(),
                report: channel.raw(),
            };
            let failure = match child.become_process(stdio, terminal.as_ref(), *owner_uid) {
                Err(failure) => failure,
                Ok(never) => match never {},
            };
            let _ = channel.send(&Report::Failed(failure), &[]);
            // SAFETY: ends this process without running the executor's own way out.
            unsafe { libc::_exit(1) }
        }
        pid => channel
            .send(&Report::Started { pid: pid as u32 }, &[])
            .map_err(|e| Failure::of("executor", e)),
    }
}

/// A cgroup of the container's, wherever the path says that it is.
fn below(cgroup: &Path, place: &str) -> PathBuf {
    let names = Path::new(place).components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    cgroup.join(names.collect::<PathBuf>())
}

fn join(cgroup: &Path) -> Result<(), Failure> {
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").map_err(|error| {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(0));
        let (pid, why) = (std::process::id(), workload::runc_words(errno));
        Failure::other(format!(
            "adding pid {pid} to cgroups: {}: {why}",
            procs.display()
        ))
    })
}

/// The container's cgroup; or, when a container such as systemd has divided it and the kernel allows processes only in its leaves,
/// the cgroup that its init is in.
fn join_cgroup(cgroup: &Path, init_pid: u32) -> Result<(), Failure> {
    let Err(first) = join(cgroup) else {
        return Ok(());
    };
    let line = fs::read_to_string(format!("/proc/{init_pid}/cgroup")).unwrap_or_default();
    let inits = line
        .trim()
        .strip_prefix("0::/")
        .map(|path| Path::new("/sys/fs/cgroup").join(path));
    match inits {
        Some(path) if path.starts_with(cgroup) && join(&path).is_ok() => Ok(()),
        _ => Err(first),
    }
}

/// One setns(2) on a pidfd joins all of them in the order that the kernel knows to be right. A namespace that is ours already is
/// left out: joining one's own user namespace is an error.
fn join_namespaces(init_pid: u32) -> Result<(), Failure> {
    // SAFETY: pidfd_open takes two integers and gives a new descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, init_pid, 0) })
        .map_err(|e| Failure::of("the container's init", e))?;
    // SAFETY: made in the line above, owned by nobody else.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
    let mut wanted = 0;
    for (name, flag) in NAMESPACES {
        let theirs = fs::read_link(format!("/proc/{init_pid}/ns/{name}"));
        let ours = fs::read_link(format!("/proc/self/ns/{name}"));
        match (theirs, ours) {
            (Ok(theirs), Ok(ours)) if theirs != ours => wanted |= flag,
            // A kernel without this kind.
            (_, Err(_)) | (Ok(_), Ok(_)) => {}
            (Err(error), Ok(_)) => return Err(Failure::of("the container's init", error)),
        }
    }
    if wanted == 0 {
        return Ok(());
    }
    // SAFETY: setns takes a descriptor and flags.
    Errno::result(unsafe { libc::setns(pidfd.as_raw_fd(), wanted) })
        .map_err(|e| Failure::of("join the container's namespaces", e))?;
    Ok(())
}

enum Never {}

/// The process that is about to be the container's.
struct Child<'a> {
    process: &'a Process,
    confinement: Confinement,
    syscall: &'a dyn Syscall,
    report: RawFd,
}

impl Child<'_> {
    fn become_process(
        &self,
        stdio: Vec<OwnedFd>,
        terminal: Option<&TerminalMode>,
        owner_uid: u32,
    ) -> Result<Never, Failure> {
        nix::unistd::setsid().map_err(|e| Failure::of("setsid", e))?;
        match terminal {
            Some(mode) => self.open_terminal(mode, owner_uid)?,
            None => connect_stdio(&stdio)?,
        }
        drop(stdio);
        let user = self.process.user();
        if let Some(umask) = user.umask() {
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
        }
        // As root first, then once more as the user (runc does the same): either may be the only one who can.
        let entered = nix::unistd::chdir(self.process.cwd());
        self.take_identity()?;
        if entered.is_err() {
            nix::unistd::chdir(self.process.cwd()).map_err(|e| {
                Failure::of(&format!("chdir to {}", self.process.cwd().display()), e)
            })?;
        }
        // A cwd that is a leaked directory from outside the container has no path in it (CVE-2024-21626).
        nix::unistd::getcwd()
            .map_err(|e| Failure::of("the working directory is outside the container", e))?;
        self.restrict()?;
        let program = workload::find(self.process)?;
        let environment = workload::environment(self.process);
        confine::filter_late(&self.confinement)?;
        Err(workload::execute(self.process, &program, &environment))
    }

    fn open_terminal(&self, mode: &TerminalMode, owner_uid: u32) -> Result<(), Failure> {
        let pty = nix::pty::openpty(None, None).map_err(|e| Failure::of("terminal", e))?;
        mode.apply(&pty.slave)
            .map_err(|e| Failure::of("terminal", e))?;
        let _ = nix::unistd::fchown(&pty.slave, Some(Uid::from_raw(owner_uid)), None);
        send_on(self.report, &Report::Terminal, &[pty.master.as_fd()])
            .map_err(|e| Failure::of("terminal", e))?;
        // SAFETY: TIOCSCTTY takes an integer: 0, do not steal.
        Errno::result(unsafe { libc::ioctl(pty.slave.as_raw_fd(), libc::TIOCSCTTY as _, 0) })
            .map_err(|e| Failure::of("terminal", e))?;
        let slave = |fd: &OwnedFd| fd.try_clone().map_err(|e| Failure::of("terminal", e));
        connect_stdio(&[slave(&pty.slave)?, slave(&pty.slave)?, slave(&pty.slave)?])
    }

    /// Groups, user, and the right to keep capabilities across that change until [`Self::restrict`] says which.
    fn take_identity(&self) -> Result<(), Failure> {
        let user = self.process.user();
        let groups: Vec<Gid> = user
            .additional_gids()
            .iter()
            .flatten()
            .map(|&gid| Gid::from_raw(gid))
            .collect();
        match nix::unistd::setgroups(&groups) {
            // A user namespace may deny setgroups; without groups to set that is no loss.
            Err(Errno::EPERM) if groups.is_empty() => {}
            other => other.map_err(|e| Failure::of("set supplementary groups", e))?,
        }
        let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
        keep_capabilities(true)?;
        nix::unistd::setresgid(gid, gid, gid).map_err(|e| Failure::of("set group", e))?;
        nix::unistd::setresuid(uid, uid, uid).map_err(|e| Failure::of("set user", e))?;
        keep_capabilities(false)
    }

    /// no_new_privs, the filter if only a privileged process may load it, and capabilities, in the order in which each is still allowed.
    fn restrict(&self) -> Result<(), Failure> {
        // SAFETY: close_range only marks; the numbers above 2 are ours.
        unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        };
        if self.confinement.gains_no_privileges {
            // SAFETY: prctl(PR_SET_NO_NEW_PRIVS) takes integers.
            Errno::result(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })
                .map_err(|e| Failure::of("set no_new_privs", e))?;
        }
        confine::drop_privileges(&self.confinement, self.syscall)
    }
}

fn keep_capabilities(keep: bool) -> Result<(), Failure> {
    // SAFETY: prctl(PR_SET_KEEPCAPS) takes integers.
    Errno::result(unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0)
    })
    .map_err(|e| Failure::of("keep capabilities", e))?;
    Ok(())
}

fn connect_stdio(stdio: &[OwnedFd]) -> Result<(), Failure> {
    for (fd, number) in stdio.iter().zip(0..) {
        // SAFETY: replaces 0, 1 and 2, which is the purpose; `fd` is open.
        Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) })
            .map_err(|e| Failure::of("stdio", e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_that_is_not_there_is_told_in_runcs_words() {
        let error = join(Path::new("/c/none")).unwrap_err().to_string();
        let told = "to cgroups: /c/none/cgroup.procs: no such file or directory";
        assert!(error.contains(told), "{error}");
    }

    #[test]
    fn a_place_is_never_outside_the_containers_cgroup() {
        let at = |place| below(Path::new("/c/web"), place);
        assert_eq!(at("/"), Path::new("/c/web"));
        assert_eq!(at("/a/b"), Path::new("/c/web/a/b"));
        assert_eq!(at("../../x"), Path::new("/c/web/x"));
    }
}
