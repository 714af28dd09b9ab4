//! A pod's directory on the host: which file is where, and the mounts in its share.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2},
    io::Errno,
    mount::{MountPropagationFlags, UnmountFlags},
};

use super::{ContainerId, binds::HostBind, mount_table, tree::Tree};

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
    /// A volume's ids could not be mapped.
    #[error("map the ids of {what}")]
    MapIds {
        /// Whose.
        what: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A volume's ids can't be mapped where it is.
    #[error(
        "the ids of {what} can't be mapped: the file system {kind} on {mount_point} has no idmapped mounts"
    )]
    NoMappedIds {
        /// Whose.
        what: PathBuf,
        /// Where the file system is mounted that contains it, or that is mounted below it.
        mount_point: PathBuf,
        /// The file system's type.
        kind: String,
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

    /// The socket of the process that carries the network of an engine's pod.
    pub fn network(&self) -> PathBuf {
        self.0.join("network.sock")
    }

    /// The named pipe that keeps the VM running while somebody holds it.
    pub fn lifeline(&self) -> PathBuf {
        self.0.join("lifeline")
    }

    /// A file for each container of an OCI engine in this pod; its content is the path of that container's directory.
    pub fn members(&self) -> PathBuf {
        self.0.join("members")
    }

    /// What the VM of an engine's pod was made as.
    pub fn shape(&self) -> PathBuf {
        self.0.join("shape.json")
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

/// A container's directory in its pod's share. The guest writes to the share: it may rename what is there and leave
/// symbolic links, so everything here is made anew and reached by descriptor, never by path, and mounted on descriptors.
#[derive(Debug)]
pub struct Corner {
    fd: OwnedFd,
    path: PathBuf,
}

/// Names of the share resolve to the share's own directories, whatever the guest put there.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Corner {
    /// Makes `<share>/<id>`.
    ///
    /// # Errors
    /// It is there already, and who knows what is in it; or as the file system says.
    pub fn make(share: &Path, id: &ContainerId) -> Result<Self, PlaceError> {
        let path = share.join(id.as_str());
        let make = || {
            let share = rustix::fs::open(share, DIRECTORY, Mode::empty())?;
            mkdirat(&share, id.as_str(), Mode::from_raw_mode(0o755))?;
            openat2(&share, id.as_str(), DIRECTORY, Mode::empty(), CONFINED)
        };
        match make() {
            Ok(fd) => Ok(Self { fd, path }),
            Err(error) => Err(PlaceError::Make {
                path,
                source: error.into(),
            }),
        }
    }

    /// Makes an empty directory, which must be new, and those above it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn make_dir(&self, name: &Path) -> Result<Spot, PlaceError> {
        let made = self.parent_of(name).and_then(|(parent, last)| {
            mkdirat(&parent, &last, Mode::from_raw_mode(0o755))?;
            openat2(&parent, &last, DIRECTORY, Mode::empty(), CONFINED)
        });
        self.spot(name, made)
    }

    /// Makes a file, which must be new, and the directories above it.
    ///
    /// # Errors
    /// As the file system says.
    pub fn write_file(&self, name: &Path, content: &[u8]) -> Result<Spot, PlaceError> {
        let made = self.parent_of(name).and_then(|(parent, last)| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            openat2(&parent, &last, flags, Mode::from_raw_mode(0o644), CONFINED)
        });
        let spot = self.spot(name, made)?;
        let mut rest = content;
        while !rest.is_empty() {
            let count = rustix::io::write(&spot.fd, rest).map_err(|error| PlaceError::Make {
                path: spot.path.clone(),
                source: error.into(),
            })?;
            rest = &rest[count..];
        }
        Ok(spot)
    }

    /// The directory `name`, as it is now: with what was mounted on it.
    ///
    /// # Errors
    /// It is not there, or not a directory any more.
    pub fn reopen(&self, name: &Path) -> Result<Spot, PlaceError> {
        self.spot(
            name,
            openat2(&self.fd, name, DIRECTORY, Mode::empty(), CONFINED),
        )
    }

    fn spot(&self, name: &Path, fd: rustix::io::Result<OwnedFd>) -> Result<Spot, PlaceError> {
        let path = self.path.join(name);
        match fd {
            Ok(fd) => Ok(Spot { fd, path }),
            Err(error) => Err(PlaceError::Make {
                path,
                source: error.into(),
            }),
        }
    }

    fn parent_of(&self, name: &Path) -> rustix::io::Result<(OwnedFd, OsString)> {
        let mut names: Vec<&OsStr> = name.iter().collect();
        let last = names.pop().ok_or(Errno::INVAL)?;
        let mut dir = openat2(&self.fd, ".", DIRECTORY, Mode::empty(), CONFINED)?;
        for name in names {
            match mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            dir = openat2(&dir, name, DIRECTORY, Mode::empty(), CONFINED)?;
        }
        Ok((dir, last.to_owned()))
    }
}

/// A file or directory in a [`Corner`].
#[derive(Debug)]
pub struct Spot {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
}

impl Spot {
    /// A path to exactly this directory, for calls that take no descriptor; valid in this process while this lives.
    pub fn proc_path(&self) -> PathBuf {
        // Without the dot it would be a link, which move_mount(2) doesn't follow.
        format!("/proc/self/fd/{}/.", self.fd.as_raw_fd()).into()
    }
}

/// Bind-mounts one source into a container's corner of the share. The mount point is made first: a directory for a
/// directory, an empty file for everything else. `target` is relative to the corner.
///
/// # Errors
/// The source is missing, or the kernel refuses.
pub fn bind(corner: &Corner, target: &Path, bind: &HostBind) -> Result<(), PlaceError> {
    Tree::open(bind)?.attach(corner, target)
}

/// Writes the files that become the container's `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
///
/// # Errors
/// As the file system says.
pub fn write_etc_files(corner: &Corner, hostname: &str) -> Result<(), PlaceError> {
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
        corner.write_file(&Path::new("files").join(name), &content)?;
    }
    Ok(())
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
    let all = mount_table::read()?.into_iter();
    let points = all.map(|mounted| mounted.mount_point);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::binds::ReadOnly;
    use super::*;

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

    fn corner(share: &Path) -> Corner {
        Corner::make(share, &"web".parse().unwrap()).unwrap()
    }

    #[test]
    fn etc_files_name_the_host() {
        let share = tempfile::tempdir().unwrap();
        write_etc_files(&corner(share.path()), "web").unwrap();
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
            read_only: ReadOnly::Nothing,
            ids: None,
        };
        let corner = corner(share.path());
        let message = bind(&corner, Path::new("volumes/0"), &wanted)
            .unwrap_err()
            .to_string();
        assert_eq!(message, "/does/not/exist is not there");
    }

    #[test]
    fn what_the_guest_left_in_the_share_is_not_used() {
        let share = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let link = |name: &str| {
            std::os::unix::fs::symlink(outside.path(), share.path().join(name)).unwrap();
        };
        link("web");
        assert!(Corner::make(share.path(), &"web".parse().unwrap()).is_err());
        fs::remove_file(share.path().join("web")).unwrap();
        let corner = corner(share.path());
        link("web/volumes");
        assert!(corner.make_dir(Path::new("volumes/0")).is_err());
        assert!(corner.write_file(Path::new("volumes/1"), b"x").is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
