//! Applies one layer's tar stream to an empty directory, in the form that overlayfs wants (OCI image-spec layer.md).

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, XattrFlags, lsetxattr, makedev, mkdirat, mknodat, openat,
    symlinkat,
};

use super::attributes::{Attributes, set_time};
use super::beneath::{Dir, Implied, NameError, Root, components, is_whiteout};
use super::lower::{Found, LowerView};
use super::member::{Kind, Member, Members, Time};
use super::{EXPLICIT_ROOT_XATTR, OPAQUE_XATTR, contents};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Names that AUFS kept for itself: never files of the image.
const META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot read it")]
    Read(#[source] io::Error),
    #[error("member {member:?} is refused")]
    Name { member: String, source: NameError },
    #[error("member {member:?} is a hard link to {target:?}, which is refused")]
    LinkName {
        member: String,
        target: String,
        source: NameError,
    },
    #[error(
        "member {member:?} is a hard link to {target:?}, which is no file of this layer or a lower one"
    )]
    DeadLink { member: String, target: String },
    #[error("cannot write member {member:?}")]
    Write { member: String, source: io::Error },
    #[error("cannot prepare the layer's directory")]
    Prepare(#[source] io::Error),
}

/// What is known after a layer was unpacked.
#[derive(Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The result holds copies from lower layers, so it is right only on top of exactly these.
    pub depends_on_lower: bool,
}

/// Unpacks all of `members` into the empty directory `into`, which nobody else may change meanwhile.
///
/// `lower` are the layers beneath. They are needed for hard links to their files and for the attributes of directories that
/// the layer writes to without having a member for them.
pub fn unpack<R: Read>(
    members: &mut Members<R>,
    into: &Path,
    lower: &LowerView,
) -> Result<Unpacked, UnpackError> {
    let root = Root::open(into).map_err(UnpackError::Prepare)?;
    let inherit = Inherit {
        lower,
        used: false,
        dir_times: Vec::new(),
    };
    let mut layer = Layer {
        root,
        inherit,
        last_parent: None,
    };
    while let Some(member) = members.next_member().map_err(UnpackError::Read)? {
        let parts = components(&member.path).map_err(|source| UnpackError::Name {
            member: text(&member.path),
            source,
        })?;
        layer.apply(&member, &parts, members)?;
    }
    layer.set_dir_times().map_err(UnpackError::Prepare)?;
    Ok(Unpacked {
        depends_on_lower: layer.inherit.used,
    })
}

struct Layer<'a> {
    root: Root,
    inherit: Inherit<'a>,
    /// The directory of the last member: most members share it with their neighbour.
    last_parent: Option<(Vec<OsString>, Dir)>,
}

/// Gives directories without a member the attributes they have in the layers beneath.
struct Inherit<'a> {
    lower: &'a LowerView,
    used: bool,
    /// Set last, because making entries changes them.
    dir_times: Vec<(Vec<OsString>, Time)>,
}

impl Implied for Inherit<'_> {
    fn made(&mut self, dir: &Dir, hid: bool) -> io::Result<()> {
        if hid {
            return set_opaque(dir, OsStr::new("."));
        }
        self.used = true;
        let Some(found) = self.lower.find(&dir.path)? else {
            return Ok(());
        };
        if FileType::from_raw_mode(found.stat.st_mode) == FileType::Directory {
            let attributes = Attributes::of_found(&found)?;
            attributes.set(dir, OsStr::new("."), FileType::Directory)?;
            self.dir_times.push((dir.path.clone(), attributes.mtime));
        }
        Ok(())
    }
}

impl Layer<'_> {
    fn apply(
        &mut self,
        member: &Member,
        parts: &[OsString],
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let Some((name, parents)) = parts.split_last() else {
            return self
                .apply_root(member)
                .map_err(|source| write_error(member, source));
        };
        let parent = self
            .parent(parents)
            .map_err(|source| write_error(member, source))?;
        if name.as_bytes().starts_with(WHITEOUT_PREFIX) {
            return self
                .white_out(&parent, name)
                .map_err(|source| write_error(member, source));
        }
        match member.kind {
            Kind::HardLink => self.link(member, &parent, name),
            Kind::File => {
                self.clear(&parent, name, false)
                    .map_err(|source| write_error(member, source))?;
                self.write_file(member, &parent, name, data)
            }
            _ => self
                .make(member, &parent, name)
                .map_err(|source| write_error(member, source)),
        }
    }

    fn parent(&mut self, parents: &[OsString]) -> io::Result<Dir> {
        if let Some((path, dir)) = &self.last_parent
            && path == parents
        {
            return Ok(dir.clone());
        }
        let dir = self.root.dir_or_make(parents, &mut self.inherit)?;
        self.last_parent = Some((parents.to_vec(), dir.clone()));
        Ok(dir)
    }

    /// The member "./": attributes of the root directory, marked so that [`super::rootfs`] knows which layer has the last word.
    fn apply_root(&mut self, member: &Member) -> io::Result<()> {
        if member.kind != Kind::Directory {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it names the root but is no directory",
            ));
        }
        let root = self.root.dir();
        Attributes::of_member(member).set(&root, OsStr::new("."), FileType::Directory)?;
        lsetxattr(
            root.proc_path(OsStr::new(".")),
            EXPLICIT_ROOT_XATTR,
            b"y",
            XattrFlags::empty(),
        )?;
        self.inherit.dir_times.push((Vec::new(), member.mtime));
        Ok(())
    }

    /// Makes everything but regular files and hard links.
    fn make(&mut self, member: &Member, parent: &Dir, name: &OsStr) -> io::Result<()> {
        let is_dir = member.kind == Kind::Directory;
        let place = self.clear(parent, name, is_dir)?;
        let mode = Mode::from_raw_mode(0o600);
        let kind = match member.kind {
            Kind::Directory => {
                if place != Place::Directory {
                    mkdirat(parent, name, Mode::from_raw_mode(0o700))?;
                }
                if place == Place::WhitedOut {
                    set_opaque(parent, name)?;
                }
                self.inherit
                    .dir_times
                    .push((joined(parent, name), member.mtime));
                FileType::Directory
            }
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&member.link), parent, name)?;
                FileType::Symlink
            }
            Kind::CharDevice { major, minor } => {
                mknodat(
                    parent,
                    name,
                    FileType::CharacterDevice,
                    mode,
                    makedev(major, minor),
                )?;
                FileType::CharacterDevice
            }
            Kind::BlockDevice { major, minor } => {
                mknodat(
                    parent,
                    name,
                    FileType::BlockDevice,
                    mode,
                    makedev(major, minor),
                )?;
                FileType::BlockDevice
            }
            Kind::Fifo => {
                mknodat(parent, name, FileType::Fifo, mode, 0)?;
                FileType::Fifo
            }
            Kind::File | Kind::HardLink => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let attributes = Attributes::of_member(member);
        attributes.set(parent, name, kind)?;
        attributes.set_time(parent, name)
    }

    fn write_file(
        &self,
        member: &Member,
        parent: &Dir,
        name: &OsStr,
        data: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let file = contents::create(parent, name).map_err(|source| write_error(member, source))?;
        contents::write(&file, member, data)?;
        let attributes = Attributes::of_member(member);
        let set = attributes.set(parent, name, FileType::RegularFile);
        set.and_then(|()| attributes.set_time(parent, name))
            .map_err(|source| write_error(member, source))
    }

    fn link(&mut self, member: &Member, parent: &Dir, name: &OsStr) -> Result<(), UnpackError> {
        let parts = components(&member.link).map_err(|source| UnpackError::LinkName {
            member: text(&member.path),
            target: text(&member.link),
            source,
        })?;
        let target = self
            .link_target(&parts)
            .map_err(|source| write_error(member, source))?;
        let Some((target_parent, target_name)) = target else {
            return Err(UnpackError::DeadLink {
                member: text(&member.path),
                target: text(&member.link),
            });
        };
        if joined(&target_parent, &target_name) == joined(parent, name) {
            return Ok(());
        }
        let linked = self.clear(parent, name, false).and_then(|_| {
            Ok(rustix::fs::linkat(
                &target_parent,
                &*target_name,
                parent,
                name,
                AtFlags::empty(),
            )?)
        });
        linked.map_err(|source| write_error(member, source))
    }

    /// The file a hard link means, copied up if it is in a lower layer.
    fn link_target(&mut self, parts: &[OsString]) -> io::Result<Option<(Dir, OsString)>> {
        let Some((name, parents)) = parts.split_last() else {
            return Ok(None);
        };
        match self.root.existing_dir(parents) {
            Ok(parent) => match parent.stat(name)? {
                Some(stat) if is_whiteout(&stat) => return Ok(None),
                Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                    return Ok(None);
                }
                Some(_) => return Ok(Some((parent, name.clone()))),
                None => {}
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.inherit.used = true;
        match self.inherit.lower.find(parts)? {
            Some(found) => self.copy_up(&found),
            None => Ok(None),
        }
    }

    fn copy_up(&mut self, found: &Found) -> io::Result<Option<(Dir, OsString)>> {
        let Some((name, parents)) = found.path.split_last() else {
            return Ok(None);
        };
        let parent = self.root.dir_or_make(parents, &mut self.inherit)?;
        let kind = FileType::from_raw_mode(found.stat.st_mode);
        match kind {
            FileType::Directory => return Ok(None),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&found.parent, &*found.name, Vec::new())?;
                symlinkat(target.as_c_str(), &parent, &**name)?;
            }
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = openat(&found.parent, &*found.name, flags, Mode::empty())?;
                io::copy(
                    &mut std::fs::File::from(source),
                    &mut contents::create(&parent, name)?,
                )?;
            }
            _ => mknodat(
                &parent,
                &**name,
                kind,
                Mode::from_raw_mode(0o600),
                found.stat.st_rdev,
            )?,
        }
        let attributes = Attributes::of_found(found)?;
        attributes.set(&parent, name, kind)?;
        attributes.set_time(&parent, name)?;
        Ok(Some((parent, name.clone())))
    }

    fn white_out(&mut self, parent: &Dir, marker: &OsStr) -> io::Result<()> {
        if marker == OsStr::from_bytes(OPAQUE) {
            return set_opaque(parent, OsStr::new("."));
        }
        if marker.as_bytes().starts_with(META_PREFIX) {
            return Ok(());
        }
        let name = marker
            .as_bytes()
            .strip_prefix(WHITEOUT_PREFIX)
            .unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "this whiteout names no file",
            ));
        }
        let name = OsStr::from_bytes(name);
        match parent.stat(name)? {
            None => {
                let mode = Mode::from_raw_mode(0);
                Ok(mknodat(
                    parent,
                    name,
                    FileType::CharacterDevice,
                    mode,
                    makedev(0, 0),
                )?)
            }
            // The whiteout is for the lower layers' directory only; this layer's own stays.
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                set_opaque(parent, name)
            }
            Some(_) => Ok(()),
        }
    }

    /// Makes room for `name`: a later member replaces an earlier one, but directories are kept.
    fn clear(&mut self, parent: &Dir, name: &OsStr, for_dir: bool) -> io::Result<Place> {
        let Some(stat) = parent.stat(name)? else {
            return Ok(Place::Free);
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if for_dir {
                return Ok(Place::Directory);
            }
            // The directory of the last member may be inside.
            self.last_parent = None;
            super::remove::remove_tree(&parent.proc_path(name))?;
            return Ok(Place::Free);
        }
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
        Ok(if is_whiteout(&stat) {
            Place::WhitedOut
        } else {
            Place::Free
        })
    }

    fn set_dir_times(&self) -> io::Result<()> {
        for (path, time) in &self.inherit.dir_times {
            match self.root.existing_dir(path) {
                Ok(dir) => set_time(&dir, OsStr::new("."), *time)?,
                // A later member replaced it.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[derive(PartialEq, Eq, Debug)]
enum Place {
    Free,
    Directory,
    WhitedOut,
}

fn set_opaque(parent: &Dir, name: &OsStr) -> io::Result<()> {
    Ok(lsetxattr(
        parent.proc_path(name),
        OPAQUE_XATTR,
        b"y",
        XattrFlags::empty(),
    )?)
}

fn joined(parent: &Dir, name: &OsStr) -> Vec<OsString> {
    let mut path = parent.path.clone();
    path.push(name.into());
    path
}

pub(super) fn write_error(member: &Member, source: io::Error) -> UnpackError {
    UnpackError::Write {
        member: text(&member.path),
        source,
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
