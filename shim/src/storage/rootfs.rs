//! A container's root file system: the image's layers below a directory of its own, joined by overlayfs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, openat, statfs};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};

use super::EXPLICIT_ROOT_XATTR;
use super::attributes::Attributes;
use super::beneath::Root;
use super::store::{WritableLayer, root_owner};

/// OVERLAYFS_SUPER_MAGIC of linux/magic.h.
const OVERLAY_MAGIC: u64 = 0x794c_7630;
/// Longest value of a mount option (fsconfig(2): 256 bytes with the NUL).
const OPTION_LIMIT: usize = 255;
/// mount(2) takes one page of options.
const PAGE: usize = 4096;

/// Options of every mount:
/// - `index=off`: layers are shared by containers, and an index would tie them to one upper directory.
/// - `metacopy=off`: an upper file is always whole, so nothing but the directory names ties it to its layers.
/// - `redirect_dir=on`: rename(2) of a directory of the image works instead of failing with EXDEV. Layers can't abuse it,
///   because unpacking refuses trusted.overlay.* attributes.
/// - `xino=auto`: inode numbers stay the same when a file is copied up, wherever the layers' file systems leave bits for it.
const OPTIONS: [(&str, &str); 4] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "on"),
    ("xino", "auto"),
];

/// Why a root file system could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum RootFsError {
    #[error(
        "{0:?} is on overlayfs, and overlayfs can't have its writable layer on overlayfs: \
         put the image store on ext4, xfs, btrfs or tmpfs"
    )]
    UpperOnOverlay(PathBuf),
    #[error("an image without layers can't be mounted")]
    NoLayers,
    #[error("cannot open layer {path:?}")]
    Layer { path: PathBuf, source: io::Error },
    #[error("cannot prepare the writable layer {path:?}")]
    Writable { path: PathBuf, source: io::Error },
    #[error("cannot mount the overlay on {target:?}{said}")]
    Mount {
        target: PathBuf,
        said: String,
        source: io::Error,
    },
    #[error(
        "{0} layers are too many for this kernel, which lacks the overlay option lowerdir+ (Linux 6.7)"
    )]
    TooManyLayers(usize),
    #[error("cannot unmount {target:?}")]
    Unmount { target: PathBuf, source: io::Error },
}

/// A mounted root file system; dropping it unmounts it.
#[must_use = "dropping it unmounts the root file system"]
#[derive(Debug)]
pub struct RootFs {
    target: PathBuf,
    mounted: bool,
}

impl RootFs {
    /// Mounts `layers` (lowest first) with `writable` on top at the existing directory `target`, in the caller's mount namespace.
    ///
    /// Device nodes and setuid bits have no effect on the host, only in the guest.
    pub fn mount(
        layers: &[PathBuf],
        writable: &WritableLayer,
        target: &Path,
    ) -> Result<Self, RootFsError> {
        prepare_writable(layers, writable)?;
        let lower = layers
            .iter()
            .rev()
            .map(|layer| LayerDir::open(layer))
            .collect::<Result<Vec<_>, _>>()?;
        let upper = [
            LayerDir::open(&writable.upper)?,
            LayerDir::open(&writable.work)?,
        ];
        if !mount_by_fsconfig(&lower, &upper, target)? {
            mount_by_page(&lower, &upper, target)?;
        }
        Ok(Self {
            target: target.into(),
            mounted: true,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }

    /// Leaves it mounted, until the mount namespace ends or somebody unmounts it.
    pub fn keep(mut self) -> PathBuf {
        self.mounted = false;
        std::mem::take(&mut self.target)
    }

    /// Unmounts it now, even if files in it are still open (they stay usable).
    pub fn unmount(mut self) -> Result<(), RootFsError> {
        self.mounted = false;
        let failed = |source: Errno| RootFsError::Unmount {
            target: self.target.clone(),
            source: source.into(),
        };
        unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(failed)
    }
}

impl Drop for RootFs {
    fn drop(&mut self) {
        if self.mounted
            && let Err(error) = unmount(&self.target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        {
            tracing::warn!(target = ?self.target, %error, "cannot unmount a root file system");
        }
    }
}

/// Whether `path` is on overlayfs.
pub(super) fn is_overlay(path: &Path) -> io::Result<bool> {
    let kind = statfs(path)?.f_type;
    // The type's width and sign differ between architectures; the magic fits all of them.
    Ok(u64::try_from(kind).is_ok_and(|kind| kind & 0xffff_ffff == OVERLAY_MAGIC))
}

fn prepare_writable(layers: &[PathBuf], writable: &WritableLayer) -> Result<(), RootFsError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| RootFsError::Writable { path, source }
    };
    let owner = root_owner(layers).ok_or(RootFsError::NoLayers)?;
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(&writable.work)
        .map_err(failed(&writable.work))?;
    if is_overlay(&writable.work).map_err(failed(&writable.work))? {
        return Err(RootFsError::UpperOnOverlay(writable.work.clone()));
    }
    if writable.upper.is_dir() {
        return Ok(());
    }
    // The merged root directory has the attributes of the upper one. Renamed when it has them, so that one that exists is right.
    let fresh = writable.upper.with_extension("new");
    builder.create(&fresh).map_err(failed(&fresh))?;
    copy_root_attributes(owner, &fresh).map_err(failed(&fresh))?;
    fs::rename(&fresh, &writable.upper).map_err(failed(&writable.upper))
}

fn copy_root_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to, name) = (
        Root::open(from)?.dir(),
        Root::open(to)?.dir(),
        OsStr::new("."),
    );
    let Some(stat) = from.stat(name)? else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let mut attributes = Attributes::of_file(&from, name, &stat)?;
    attributes
        .xattrs
        .retain(|(xattr, _)| xattr != EXPLICIT_ROOT_XATTR);
    attributes.set(&to, name, FileType::Directory)?;
    attributes.set_time(&to, name)
}

/// A directory for an overlay option.
struct LayerDir {
    path: PathBuf,
    fd: OwnedFd,
}

impl LayerDir {
    fn open(path: &Path) -> Result<Self, RootFsError> {
        let failed = |source: io::Error| RootFsError::Layer {
            path: path.into(),
            source,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(CWD, path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        Ok(Self {
            path: fs::canonicalize(path).map_err(failed)?,
            fd,
        })
    }

    /// Short, and free of the characters that overlayfs' options escape.
    fn by_fd(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// The path itself, for the reader of /proc/mounts, where an option can hold it.
    fn option(&self) -> String {
        let plain = self
            .path
            .to_str()
            .filter(|path| path.len() <= OPTION_LIMIT && !path.contains([':', ',', '\\']));
        plain.map_or_else(|| self.by_fd(), str::to_owned)
    }
}

/// Mounts with one option per layer; false if the kernel can't (lowerdir+ is there since 6.7).
fn mount_by_fsconfig(
    lower: &[LayerDir],
    upper: &[LayerDir; 2],
    target: &Path,
) -> Result<bool, RootFsError> {
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Ok(context) => context,
        Err(Errno::NOSYS) => return Ok(false),
        Err(source) => return Err(mount_error(target, String::new(), source)),
    };
    let failed = |source| mount_error(target, kernel_said(&context), source);
    for (index, layer) in lower.iter().enumerate() {
        match fsconfig_set_string(&context, "lowerdir+", layer.option()) {
            Ok(()) => {}
            Err(Errno::INVAL) if index == 0 => return Ok(false),
            Err(source) => return Err(failed(source)),
        }
    }
    let [upper, work] = upper;
    let writable = [
        ("source", "vmbox".to_owned()),
        ("upperdir", upper.option()),
        ("workdir", work.option()),
    ];
    let options = OPTIONS
        .into_iter()
        .map(|(key, value)| (key, value.to_owned()));
    for (key, value) in writable.into_iter().chain(options) {
        fsconfig_set_string(&context, key, value).map_err(failed)?;
    }
    fsconfig_create(&context).map_err(failed)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)?;
    move_mount(
        &mount,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(failed)?;
    Ok(true)
}

/// Mounts with mount(2), whose options must fit into a page: so layers are named by descriptor.
fn mount_by_page(
    lower: &[LayerDir],
    upper: &[LayerDir; 2],
    target: &Path,
) -> Result<(), RootFsError> {
    let [upper, work] = upper;
    let lowerdir: Vec<String> = lower.iter().map(LayerDir::by_fd).collect();
    let mut options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lowerdir.join(":"),
        upper.by_fd(),
        work.by_fd()
    );
    for (key, value) in OPTIONS {
        options.push_str(&format!(",{key}={value}"));
    }
    if options.len() >= PAGE {
        return Err(RootFsError::TooManyLayers(lower.len()));
    }
    let options = std::ffi::CString::new(options).map_err(|_| RootFsError::NoLayers)?;
    let mounted = mount(
        "vmbox",
        target,
        "overlay",
        MountFlags::NODEV | MountFlags::NOSUID,
        options.as_c_str(),
    );
    mounted.map_err(|source| mount_error(target, String::new(), source))
}

fn mount_error(target: &Path, said: String, source: Errno) -> RootFsError {
    RootFsError::Mount {
        target: target.into(),
        said,
        source: source.into(),
    }
}

/// What the kernel logged to the mount context, which tells more than an error number.
fn kernel_said(context: &OwnedFd) -> String {
    let Ok(mut log) = context.try_clone().map(File::from) else {
        return String::new();
    };
    let mut said = String::new();
    let mut message = [0; 1024];
    // Each read gives one message; ENODATA ends them.
    while let Ok(count) = log.read(&mut message) {
        let Some(text) = message.get(..count).filter(|text| !text.is_empty()) else {
            break;
        };
        said.push_str(" (");
        said.push_str(String::from_utf8_lossy(text).trim());
        said.push(')');
    }
    said
}
