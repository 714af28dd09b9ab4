//! From the kernel's first user process to a machine that containers can run on: root, mounts, limits, loopback, cgroups.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::resource::{Resource, setrlimit};

use crate::net::Attic;
use crate::{cgroup, log};

/// A step of the boot that failed; PID 1 ends with it.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct BootError {
    step: String,
    source: std::io::Error,
}

/// Names the step that an error belongs to.
pub trait Step<T> {
    /// Adds what was being done.
    fn step(self, step: impl Into<String>) -> Result<T, BootError>;
}

impl<T, E: Into<std::io::Error>> Step<T> for Result<T, E> {
    fn step(self, step: impl Into<String>) -> Result<T, BootError> {
        self.map_err(|source| BootError {
            step: step.into(),
            source: source.into(),
        })
    }
}

struct Mount {
    source: &'static str,
    target: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const fn entry(
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    data: &'static str,
) -> Mount {
    Mount {
        source: kind,
        target,
        kind,
        flags,
        data,
    }
}

const SAFE: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// In the order in which they are mounted.
const MOUNTS: &[Mount] = &[
    entry("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    entry("proc", "/proc", SAFE, ""),
    entry("sysfs", "/sys", SAFE, ""),
    entry(
        "tmpfs",
        "/run",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=0755",
    ),
    entry(
        "tmpfs",
        "/tmp",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        "mode=1777",
    ),
    entry(
        "devpts",
        "/dev/pts",
        MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        "mode=0620,ptmxmode=0666,gid=5",
    ),
    entry("tmpfs", "/dev/shm", SAFE, "mode=1777"),
    entry("mqueue", "/dev/mqueue", SAFE, ""),
    entry(
        "cgroup2",
        "/sys/fs/cgroup",
        SAFE,
        "nsdelegate,memory_recursiveprot",
    ),
];

/// What containers expect of a host, and what one machine per pod makes harmless.
const SYSCTLS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("vm/max_map_count", "1048576"),
    // Reserving address space is not using memory: the limit is the container's cgroup, not the size of a small machine.
    ("vm/overcommit_memory", "1"),
    ("fs/inotify/max_user_instances", "8192"),
    ("fs/inotify/max_user_watches", "524288"),
    ("kernel/pid_max", "4194304"),
    ("kernel/keys/maxkeys", "100000"),
    // A memory shortage is for the killer in the cgroup, not a reason to end the machine.
    ("vm/panic_on_oom", "0"),
];

/// Makes the machine, and tells where its NICs are, if it has any. Called once, by PID 1, before there is a second thread.
///
/// # Errors
/// The step that failed. Missing sysctls and controllers are not errors: a smaller kernel has fewer.
pub fn boot() -> Result<Option<Attic>, BootError> {
    leave_rootfs()?;
    let mut attic = None;
    for m in MOUNTS {
        mount_entry(m)?;
        match m.target {
            "/dev" => open_standard_fds()?,
            "/proc" => attic = Attic::leave_behind().step("leave the NICs behind")?,
            _ => {}
        }
    }
    for (link, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        let _ = std::os::unix::fs::symlink(target, Path::new("/dev").join(link));
    }
    for (name, value) in SYSCTLS {
        let _ = fs::write(Path::new("/proc/sys").join(name), value);
    }
    let files = 1 << 20;
    setrlimit(Resource::RLIMIT_NOFILE, files, files).step("raise the limit of open files")?;
    fs::write("/proc/self/oom_score_adj", "-1000").step("protect the agent from the OOM killer")?;
    loopback_up().step("bring the loopback interface up")?;
    cgroup::prepare().step("prepare the cgroups")?;
    make_run_directories()?;
    Ok(attic)
}

/// `--serve`: the few parts of [`boot`] that an ordinary Linux does not have yet.
///
/// # Errors
/// The step that failed.
pub fn prepare_developer_host() -> Result<(), BootError> {
    // Orphaned containers come to us as they would to PID 1.
    // SAFETY: prctl(PR_SET_CHILD_SUBREAPER) takes one integer.
    nix::errno::Errno::result(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })
        .step("become a subreaper")?;
    cgroup::prepare().step("prepare the cgroups")?;
    make_run_directories()
}

fn make_run_directories() -> Result<(), BootError> {
    for directory in [
        crate::pod::SHARES,
        crate::container::BUNDLES,
        crate::executor::STATE,
    ] {
        fs::create_dir_all(directory).step(format!("create {directory}"))?;
    }
    Ok(())
}

/// Moves the agent from the kernel's rootfs to a bind mount of it.
///
/// pivot_root(2), which every container does in its mount namespace, refuses when the current root mount has no parent
/// (fs/namespace.c, `mnt_has_parent(root_mnt)`), and the rootfs has none. A bind mount of it, moved over `/`, has the rootfs
/// as its parent, holds the same files, and copies nothing.
fn leave_rootfs() -> Result<(), BootError> {
    // Not /proc or another folder that must stay empty: a mount point is only borrowed until the move.
    mount(
        Some("/"),
        "/run",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .step("bind the root")?;
    nix::unistd::chdir("/run").step("enter the new root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .step("move the new root")?;
    nix::unistd::chroot(".").step("change root")?;
    nix::unistd::chdir("/").step("enter the root")
}

fn mount_entry(m: &Mount) -> Result<(), BootError> {
    fs::create_dir_all(m.target).step(format!("create {}", m.target))?;
    let result = mount(
        Some(m.source),
        m.target,
        Some(m.kind),
        m.flags,
        Some(m.data),
    );
    match result {
        // A kernel without POSIX message queues runs everything that does not use them.
        Err(nix::errno::Errno::ENODEV) if m.kind == "mqueue" => {
            log::warn("this kernel has no mqueue");
            Ok(())
        }
        other => other.step(format!("mount {} on {}", m.kind, m.target)),
    }
}

/// The kernel gives no stdio without a console: stdin and stdout are /dev/null, stderr is the kernel's log.
fn open_standard_fds() -> Result<(), BootError> {
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .step("open /dev/null")?;
    let log = fs::OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .step("open /dev/kmsg")?;
    for (from, to) in [(&null, 0), (&null, 1), (&log, 2)] {
        if from.as_raw_fd() == to {
            continue;
        }
        // SAFETY: both are numbers of descriptors; replacing 0, 1 and 2 is the purpose.
        nix::errno::Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) })
            .step("set up stdio")?;
    }
    // When they were closed, the files above got the numbers 0 to 2 themselves and must not be closed again.
    for file in [null, log] {
        if file.as_raw_fd() <= 2 {
            std::mem::forget(file);
        }
    }
    Ok(())
}

fn loopback_up() -> nix::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq of zeroes is a valid value of that plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives across the call.
    nix::errno::Errno::result(unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw const request,
        )
    })?;
    Ok(())
}

/// The orderly end of the guest: what is dirty is written, then the machine resets, which the monitor takes as its end.
pub fn reboot() -> ! {
    nix::unistd::sync();
    let failed = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    log::error(&format!("vmbox-agent: reboot: {failed:?}"));
    // PID 1 ends: the kernel panics and the guest ends with it.
    std::process::exit(1)
}

/// Whether a word is on the kernel's command line.
pub fn kernel_command_line_has(word: &str) -> bool {
    fs::read_to_string("/proc/cmdline").is_ok_and(|line| line.split_whitespace().any(|w| w == word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_mounted_before_what_is_below_them() {
        for (i, m) in MOUNTS.iter().enumerate() {
            for later in &MOUNTS[i + 1..] {
                assert!(
                    !Path::new(m.target).starts_with(later.target),
                    "{} would hide {}",
                    later.target,
                    m.target
                );
            }
        }
    }
}
