//! A pod's directory on the host: which file is where, and the mounts in its share.

use std::{
    ffi::CStr,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{ContainerId, design::HostBind};

/// Files of the container's `/etc` that the host provides.
pub const ETC_FILES: &[&str] = &["hostname", "hosts", "resolv.conf"];

/// Why the host's side of a container could not be placed.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The source of a volume is missing.
    #[error("{0} is not there")]
    NoSource(PathBuf),
    /// A file or directory could not be made or written.
    #[error("make {path}")]
    Make {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A mount failed.
    #[error("mount {what} on {target}")]
    Mount {
        /// What.
        what: PathBuf,
        /// Where.
        target: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No mount namespace could be made or entered.
    #[error("{0} the pod's mount namespace: run as root")]
    Namespace(&'static str, #[source] io::Error),
}

/// Where everything of one pod is: `/run/vmbox/<id>`.
#[derive(Debug, Clone)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// The directory of a pod below `run`, whether or not it exists.
    pub fn of(run: &Path, id: &ContainerId) -> Self {
        Self(run.join(id.as_str()))
    }

    /// The directory at this path.
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory that the VM's file server serves.
    pub fn share(&self) -> PathBuf {
        self.0.join("share")
    }

    /// The VM's vsock socket; `<vsock>_<port>` are the host's listeners.
    pub fn vsock(&self) -> PathBuf {
        self.0.join("vsock")
    }

    /// The listener for guest connections to a port.
    pub fn vsock_port(&self, port: u32) -> PathBuf {
        self.0.join(format!("vsock_{port}"))
    }

    /// The monitor's control socket.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The owner's relay to the agent.
    pub fn agent(&self) -> PathBuf {
        self.0.join("agent.sock")
    }

    /// What the monitor writes to its standard error.
    pub fn monitor_log(&self) -> PathBuf {
        self.0.join("vmm.log")
    }

    /// Makes the directory, mode 0700, with its empty share.
    ///
    /// # Errors
    /// Among others, `AlreadyExists`: the name is taken.
    pub fn create(&self) -> io::Result<()> {
        if let Some(run) = self.0.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(run)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&self.0)
    }
}

/// Gives this process, and all that it starts, a mount namespace of their own, which mounts of the host still reach.
/// Must be called while the process has one thread.
///
/// # Errors
/// Not privileged.
pub fn enter_private_namespace() -> Result<(), PlaceError> {
    let failed = |error: rustix::io::Errno| PlaceError::Namespace("make", error.into());
    // SAFETY: NEWNS only changes what paths this process sees; it has one thread and no file descriptor table to share.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }
        .map_err(failed)?;
    let propagation = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", propagation).map_err(failed)
}

/// Enters the mount namespace of process `pid`. Must be called while this process has one thread.
///
/// # Errors
/// No such process, or not privileged.
pub fn enter_namespace_of(pid: u32) -> Result<(), PlaceError> {
    let failed = |error: io::Error| PlaceError::Namespace("enter", error);
    let namespace = fs::File::open(format!("/proc/{pid}/ns/mnt")).map_err(failed)?;
    enter_namespace(&namespace)
}

/// Enters the mount namespace that an open `/proc/<pid>/ns/mnt` stands for.
///
/// # Errors
/// Not privileged.
pub fn enter_namespace(namespace: &fs::File) -> Result<(), PlaceError> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    move_into_link_name_space(
        std::os::fd::AsFd::as_fd(namespace),
        Some(LinkNameSpaceType::Mount),
    )
    .map_err(|error| PlaceError::Namespace("enter", error.into()))
}

/// Makes a directory and its parents, mode 0755.
///
/// # Errors
/// As the file system says.
pub fn make_dir(path: &Path) -> Result<(), PlaceError> {
    fs::create_dir_all(path).map_err(|source| PlaceError::Make {
        path: path.to_owned(),
        source,
    })
}

/// Bind-mounts one source into the share at `share`, read-only if asked. The mount point is made first: a directory
/// for a directory, an empty file for everything else.
///
/// # Errors
/// The source is missing, or the kernel refuses.
pub fn bind(share: &Path, bind: &HostBind) -> Result<(), PlaceError> {
    let target = share.join(&bind.target);
    let metadata =
        fs::metadata(&bind.source).map_err(|_| PlaceError::NoSource(bind.source.clone()))?;
    if metadata.is_dir() {
        make_dir(&target)?;
    } else {
        make_dir(target.parent().unwrap_or(share))?;
        write_file(&target, b"")?;
    }
    let failed = |error: rustix::io::Errno| PlaceError::Mount {
        what: bind.source.clone(),
        target: target.clone(),
        source: error.into(),
    };
    if bind.recursive {
        rustix::mount::mount_bind_recursive(&bind.source, &target).map_err(failed)?;
    } else {
        rustix::mount::mount_bind(&bind.source, &target).map_err(failed)?;
    }
    if bind.read_only {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        rustix::mount::mount_remount(&target, flags, NO_DATA).map_err(failed)?;
    }
    Ok(())
}

const NO_DATA: &CStr = c"";

/// Writes the files that become the container's `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
///
/// # Errors
/// As the file system says.
pub fn write_etc_files(share: &Path, id: &ContainerId, hostname: &str) -> Result<(), PlaceError> {
    let files = share.join(id.as_str()).join("files");
    make_dir(&files)?;
    let hosts =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    // The guest has no network yet; the host's resolvers are what it will be given.
    let resolv_conf = fs::read("/etc/resolv.conf").unwrap_or_default();
    for name in ETC_FILES {
        let content = match *name {
            "hostname" => format!("{hostname}\n").into_bytes(),
            "hosts" => hosts.clone().into_bytes(),
            _ => resolv_conf.clone(),
        };
        write_file(&files.join(name), &content)?;
    }
    Ok(())
}

fn write_file(path: &Path, content: &[u8]) -> Result<(), PlaceError> {
    let write = || {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(path)?;
        io::Write::write_all(&mut file, content)
    };
    write().map_err(|source| PlaceError::Make {
        path: path.to_owned(),
        source,
    })
}

/// Unmounts everything below `dir` that this mount namespace shows, innermost first.
///
/// # Errors
/// The mount table can't be read, or the kernel refuses.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    for mount_point in mounts_below(dir)?.into_iter().rev() {
        rustix::mount::unmount(&mount_point, UnmountFlags::DETACH)?;
    }
    Ok(())
}

/// Mount points at or below `dir` in this mount namespace, in the order in which they were mounted.
///
/// # Errors
/// The mount table can't be read.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&table)
        .filter(|mount_point| mount_point.starts_with(dir))
        .collect())
}

/// The fifth field of each line, with `\040` and the like decoded (proc_pid_mountinfo(5)).
fn mount_points(table: &str) -> impl Iterator<Item = PathBuf> + '_ {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| {
            let text = ["\\040= ", "\\011=\t", "\\012=\n", "\\134=\\"]
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .fold(field.to_owned(), |text, (code, plain)| {
                    text.replace(code, plain)
                });
            PathBuf::from(text)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_decoded() {
        let table =
            "22 1 0:20 / /proc rw - proc proc rw\n23 1 0:21 / /run/a\\040b rw - tmpfs tmpfs rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [Path::new("/proc"), Path::new("/run/a b")]);
    }

    #[test]
    fn a_taken_name_is_noticed() {
        let run = tempfile::tempdir().unwrap();
        let dir = PodDir::of(run.path(), &"a".parse().unwrap());
        dir.create().unwrap();
        assert_eq!(
            dir.create().unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
    }

    #[test]
    fn etc_files_name_the_host() {
        let share = tempfile::tempdir().unwrap();
        let id: ContainerId = "web".parse().unwrap();
        write_etc_files(share.path(), &id, "web").unwrap();
        let hosts = fs::read_to_string(share.path().join("web/files/hosts")).unwrap();
        assert!(hosts.contains("localhost web"), "{hosts}");
    }

    #[test]
    fn a_missing_volume_is_named() {
        let share = tempfile::tempdir().unwrap();
        let wanted = HostBind {
            source: "/does/not/exist".into(),
            target: "web/volumes/0".into(),
            recursive: true,
            read_only: false,
        };
        let message = bind(share.path(), &wanted).unwrap_err().to_string();
        assert_eq!(message, "/does/not/exist is not there");
    }
}
