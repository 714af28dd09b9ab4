//! Where the blobs of an image are: an OCI layout directory, or a tar archive that is read in place.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::compression::{Compression, Decoder, detect};
use super::digest::Digest;
use super::error::ImageError;
use super::halt::Halt;
use super::member::{Kind, Members, is_tar};

/// Largest JSON document of an image that is read: far above real ones, so that a hostile one can't fill memory.
const DOCUMENT_LIMIT: u64 = 8 << 20;
/// Most members of an image archive.
const MEMBER_LIMIT: usize = 1 << 16;
const LINK_LIMIT: usize = 8;

/// The blobs of one or more images.
pub enum Source {
    Layout(PathBuf),
    Archive {
        file: File,
        members: HashMap<String, Place>,
    },
}

/// Where a member of an archive is.
pub enum Place {
    Bytes {
        start: u64,
        length: u64,
    },
    /// docker save links layers that occur twice.
    Link(String),
}

/// Bytes of a blob.
pub struct Blob<'a> {
    pub reader: Box<dyn Read + 'a>,
    pub length: u64,
}

impl Source {
    pub fn layout(dir: &Path) -> Self {
        Self::Layout(dir.to_path_buf())
    }

    /// Opens an archive; a compressed one is expanded to an unnamed file in `scratch` first, because blobs come in any order.
    pub fn archive(path: &Path, scratch: &Path, halt: &Halt) -> Result<Self, ImageError> {
        let read = |source| ImageError::Read {
            what: path.display().to_string(),
            source,
        };
        let mut file = File::open(path).map_err(read)?;
        let mut start = Vec::new();
        file.by_ref()
            .take(512)
            .read_to_end(&mut start)
            .map_err(read)?;
        file.seek(SeekFrom::Start(0)).map_err(read)?;
        if detect(&start).map_err(read)? != Compression::Plain {
            file = expand(halt.reader(file), scratch).map_err(read)?;
        } else if !is_tar(&start) {
            return Err(ImageError::NotArchive);
        }
        let members = index(&file).map_err(read)?;
        Ok(Self::Archive { file, members })
    }

    /// Whether there is such a blob or document.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Self::Layout(dir) => dir.join(name).exists(),
            Self::Archive { members, .. } => members.contains_key(name),
        }
    }

    /// Opens the blob or document `name`, a path such as `blobs/sha256/…`.
    pub fn open(&self, name: &str) -> Result<Blob<'_>, ImageError> {
        match self {
            Self::Layout(dir) => open_file(&dir.join(name)),
            Self::Archive { file, members } => open_member(file, members, name),
        }
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => ImageError::Missing { what: name.into() },
            _ => ImageError::Read {
                what: name.into(),
                source,
            },
        })
    }

    /// Reads a JSON document whole and, where the digest is known, checks it.
    pub fn document(&self, name: &str, digest: Option<Digest>) -> Result<Vec<u8>, ImageError> {
        let blob = self.open(name)?;
        if blob.length > DOCUMENT_LIMIT {
            return Err(ImageError::TooLarge {
                what: name.into(),
                bytes: blob.length,
            });
        }
        let mut bytes = Vec::new();
        let read = blob.reader.take(DOCUMENT_LIMIT).read_to_end(&mut bytes);
        read.map_err(|source| ImageError::Read {
            what: name.into(),
            source,
        })?;
        let actual = Digest::of(&bytes);
        match digest {
            Some(expected) if expected != actual => Err(ImageError::Digest {
                what: name.into(),
                expected,
                actual,
            }),
            _ => Ok(bytes),
        }
    }
}

fn open_file(path: &Path) -> io::Result<Blob<'static>> {
    // Without O_NONBLOCK a FIFO in the layout would hang the caller.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no regular file",
        ));
    }
    Ok(Blob {
        reader: Box::new(file),
        length: metadata.len(),
    })
}

fn open_member<'a>(
    file: &'a File,
    members: &HashMap<String, Place>,
    name: &str,
) -> io::Result<Blob<'a>> {
    let mut name = name;
    for _ in 0..LINK_LIMIT {
        match members.get(name) {
            None => return Err(io::ErrorKind::NotFound.into()),
            Some(Place::Link(target)) => name = target,
            Some(Place::Bytes { start, length }) => {
                let section = Section {
                    file,
                    position: *start,
                };
                return Ok(Blob {
                    reader: Box::new(section.take(*length)),
                    length: *length,
                });
            }
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "too many links"))
}

/// Reads a file from some position without moving the file's own.
struct Section<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position = self.position.saturating_add(count as u64);
        Ok(count)
    }
}

fn expand(file: impl Read, scratch: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let mut expanded = File::from(openat(CWD, scratch, flags, Mode::from_raw_mode(0o600))?);
    io::copy(
        &mut Decoder::new(BufReader::with_capacity(128 << 10, file))?,
        &mut expanded,
    )?;
    Ok(expanded)
}

/// Lists the members without reading their data.
fn index(file: &File) -> io::Result<HashMap<String, Place>> {
    let mut places = HashMap::new();
    let mut position = 0;
    loop {
        let mut members = Members::new(Section { file, position });
        let Some(member) = members.next_member()? else {
            return Ok(places);
        };
        let start = members.into_inner().position;
        position = start;
        let name = normalized("", &String::from_utf8_lossy(&member.path));
        let link = String::from_utf8_lossy(&member.link);
        let place = match member.kind {
            Kind::File if member.sparse.is_none() => {
                let padded = member
                    .size
                    .checked_next_multiple_of(512)
                    .and_then(|size| size.checked_add(start));
                position = padded.ok_or(io::ErrorKind::InvalidData)?;
                Place::Bytes {
                    start,
                    length: member.size,
                }
            }
            Kind::HardLink => Place::Link(normalized("", &link)),
            Kind::Symlink => Place::Link(normalized(
                name.rsplit_once('/').map_or("", |(dir, _)| dir),
                &link,
            )),
            Kind::File => {
                return Err(io::Error::other(
                    "an image archive with sparse members isn't supported",
                ));
            }
            _ => continue,
        };
        places.insert(name, place);
        if places.len() > MEMBER_LIMIT {
            return Err(io::Error::other(
                "an image archive has more than 65,536 members",
            ));
        }
    }
}

/// `path` seen from `dir`, without `.` and `..`. Only a key of the map, never opened.
fn normalized(dir: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in dir.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join("/")
}
