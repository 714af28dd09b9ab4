//! Turns `user[:group]` of an image or of a command line into numbers, by the container's own /etc/passwd and /etc/group.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

/// Most bytes that are read of each file: a container can make them any size.
const FILE_LIMIT: u64 = 16 << 20;

/// Who a process runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, ascending.
    pub additional_gids: Vec<u32>,
    /// Home directory; `/` for a user without an entry.
    pub home: String,
}

/// Why a user could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("the image has no user {0:?} in /etc/passwd (a number works without)")]
    NoUser(String),
    #[error("the image has no group {0:?} in /etc/group (a number works without)")]
    NoGroup(String),
    #[error("cannot read {file} of the root file system {rootfs:?}")]
    Read {
        file: &'static str,
        rootfs: PathBuf,
        source: io::Error,
    },
}

struct Entry {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// Resolves `spec` (`name|uid[:group|gid]`; empty means root) in the root file system `rootfs`, never leaving it.
///
/// As Docker does: a group in `spec` replaces the user's primary and supplementary groups; a number needs no entry; a uid
/// without an entry gets group 0 and home `/`. Names win over numbers.
pub fn resolve_user(rootfs: &Path, spec: &str) -> Result<User, UserError> {
    let (user, group) = spec.split_once(':').unwrap_or((spec, ""));
    let user = if user.is_empty() { "0" } else { user };
    let entries: Vec<Entry> = lines(rootfs, "etc/passwd")?
        .iter()
        .filter_map(|line| entry(line))
        .collect();
    let groups: Vec<Group> = lines(rootfs, "etc/group")?
        .iter()
        .filter_map(|line| parse_group(line))
        .collect();
    let number = id(user);
    let by_name = entries.iter().find(|entry| entry.name == user);
    let found = by_name.or_else(|| entries.iter().find(|entry| Some(entry.uid) == number));
    let uid = match (found, number) {
        (Some(entry), _) => entry.uid,
        (None, Some(uid)) => uid,
        (None, None) => return Err(UserError::NoUser(user.into())),
    };
    let home = found
        .map(|entry| entry.home.clone())
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".into());
    if !group.is_empty() {
        let by_name = groups
            .iter()
            .find(|entry| entry.name == group)
            .map(|entry| entry.gid);
        let gid = by_name
            .or_else(|| id(group))
            .ok_or_else(|| UserError::NoGroup(group.into()))?;
        return Ok(User {
            uid,
            gid,
            additional_gids: Vec::new(),
            home,
        });
    }
    let is_member = |group: &&Group| found.is_some_and(|entry| group.members.contains(&entry.name));
    let mut additional_gids: Vec<u32> = groups
        .iter()
        .filter(is_member)
        .map(|group| group.gid)
        .collect();
    additional_gids.sort_unstable();
    additional_gids.dedup();
    Ok(User {
        uid,
        gid: found.map_or(0, |entry| entry.gid),
        additional_gids,
        home,
    })
}

/// The lines of a file; none if there is no such file.
fn lines(rootfs: &Path, file: &'static str) -> Result<Vec<String>, UserError> {
    let failed = |source| UserError::Read {
        file,
        rootfs: rootfs.into(),
        source,
    };
    let Some(file) = open_beneath(rootfs, file).map_err(failed)? else {
        return Ok(Vec::new());
    };
    let mut lines = BufReader::new(file.take(FILE_LIMIT)).split(b'\n');
    let text = |line: Vec<u8>| {
        String::from_utf8_lossy(&line)
            .trim_end_matches('\r')
            .to_owned()
    };
    lines
        .try_fold(Vec::new(), |mut all, line| {
            all.push(text(line?));
            Ok(all)
        })
        .map_err(failed)
}

/// Opens a regular file with symbolic links resolved as in a chroot; a FIFO or device there must not hang or act.
fn open_beneath(rootfs: &Path, file: &str) -> io::Result<Option<File>> {
    let root = openat(
        CWD,
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // Looked at as a path first: opening a device already acts on it.
    let found = match openat2(
        &root,
        file,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    ) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no regular file",
        ));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat2(&root, file, flags, Mode::empty(), resolve)?;
    Ok(Some(File::from(opened)))
}

fn entry(line: &str) -> Option<Entry> {
    let mut fields = line.split(':');
    let (name, _password) = (fields.next()?, fields.next()?);
    let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
    let home = fields.nth(1).unwrap_or_default();
    Some(Entry {
        name: name.into(),
        uid,
        gid,
        home: home.into(),
    })
}

fn parse_group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let (name, _password, gid) = (fields.next()?, fields.next()?, id(fields.next()?)?);
    let members = fields
        .next()
        .unwrap_or_default()
        .split(',')
        .filter(|member| !member.is_empty());
    Some(Group {
        name: name.into(),
        gid,
        members: members.map(str::to_owned).collect(),
    })
}

fn id(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}
