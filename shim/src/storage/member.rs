//! The members of a tar stream, read one after another in constant memory (POSIX pax, ustar, GNU with sparse maps).
//!
//! The tar crate decodes the fixed headers. Its own iterator isn't used because it reads long names and pax records of any
//! size into memory, splits pax records at newlines (which binary xattrs contain), and knows no pax sparse maps.

use std::collections::VecDeque;
use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::pax::{self, Records};

const BLOCK: u64 = 512;
/// Longest pax record set or long name that is accepted: far above any file system's limits for names and xattrs.
const EXTENSION_LIMIT: u64 = 1 << 20;
/// Most fragments of one sparse file.
const SPARSE_LIMIT: usize = 1 << 18;

/// What a member makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Seconds since the epoch and nanoseconds within the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// One member: its metadata. Its data is read from [`Members`] before the next one is asked for.
#[derive(Clone, Debug)]
pub struct Member {
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Time,
    /// Length of the file in bytes, holes included.
    pub size: u64,
    /// Names (with namespace) and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Offsets and lengths of the data of a sparse file, ascending; everything else is a hole.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// Reads a tar stream. `Read` gives the data of the member that was returned last.
pub struct Members<R> {
    input: R,
    data_left: u64,
    padding: u64,
}

/// What extension members said of the next one.
#[derive(Default)]
struct Extensions {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: Records,
}

impl<R: Read> Members<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            data_left: 0,
            padding: 0,
        }
    }

    /// The stream underneath, to drain it after the last member.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next member, or `None` at the end of the archive.
    ///
    /// # Errors
    /// `InvalidData` for what isn't a tar archive, `UnexpectedEof` for a truncated one, and the errors of the source.
    pub fn next_member(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.next_header()? else {
                return Ok(None);
            };
            match header.entry_type() {
                EntryType::GNULongName => extensions.long_name = Some(self.extension_name()?),
                EntryType::GNULongLink => extensions.long_link = Some(self.extension_name()?),
                EntryType::XHeader => extensions.pax = pax::parse(&self.extension()?)?,
                // Docker and containerd ignore global records too.
                EntryType::XGlobalHeader => {}
                _ => match self.member(&header, extensions)? {
                    Some(member) => return Ok(Some(member)),
                    None => extensions = Extensions::default(),
                },
            }
        }
    }

    fn next_header(&mut self) -> io::Result<Option<Header>> {
        let skip = self.data_left.saturating_add(self.padding);
        if io::copy(&mut self.input.by_ref().take(skip), &mut io::sink())? != skip {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the tar archive is truncated",
            ));
        }
        (self.data_left, self.padding) = (0, 0);
        let mut header = Header::new_old();
        if !read_block(&mut self.input, header.as_mut_bytes())?
            || header.as_bytes().iter().all(|b| *b == 0)
        {
            return Ok(None);
        }
        if header.cksum()? != checksum(&header) {
            return Err(invalid(
                "not a tar archive, or a damaged one: wrong header checksum",
            ));
        }
        self.set_data(header.entry_size()?);
        Ok(Some(header))
    }

    fn set_data(&mut self, size: u64) {
        self.data_left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
    }

    fn extension(&mut self) -> io::Result<Vec<u8>> {
        if self.data_left > EXTENSION_LIMIT {
            return Err(invalid(&format!(
                "a tar extension header of {} bytes is longer than 1 MiB",
                self.data_left
            )));
        }
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn extension_name(&mut self) -> io::Result<Vec<u8>> {
        let mut name = self.extension()?;
        name.truncate(name.iter().position(|b| *b == 0).unwrap_or(name.len()));
        Ok(name)
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> io::Result<Option<Member>> {
        let pax = extensions.pax;
        let Some(kind) = kind(header, &pax)? else {
            return Ok(None);
        };
        let mut member = Member {
            path: pax
                .path
                .or(extensions.long_name)
                .unwrap_or_else(|| header.path_bytes().into_owned()),
            link: pax
                .link
                .or(extensions.long_link)
                .or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
                .unwrap_or_default(),
            kind,
            mode: header.mode()? & 0o7777,
            uid: id("uid", pax.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: id("gid", pax.gid.map_or_else(|| header.gid(), Ok)?)?,
            mtime: pax.mtime.map_or_else(|| header_time(header), Ok)?,
            size: 0,
            xattrs: pax.xattrs,
            sparse: None,
        };
        // Old archives mark directories only by a trailing slash (as Go's archive/tar accepts).
        if member.kind == Kind::File && member.path.ends_with(b"/") {
            member.kind = Kind::Directory;
        }
        if member.kind != Kind::File {
            // Such members may state a size but carry no data; archive/tar of Go, the reference for images, agrees.
            self.set_data(0);
            return Ok(Some(member));
        }
        if let Some(size) = pax.size {
            self.set_data(size);
        }
        member.size = self.data_left;
        if header.entry_type() == EntryType::GNUSparse {
            let (map, size) = self.gnu_sparse_map(header)?;
            (member.sparse, member.size) = (Some(map), size);
        } else if let Some(sparse) = pax.sparse {
            member.path = sparse.name.unwrap_or(member.path);
            member.size = sparse.real_size.unwrap_or(member.size);
            member.sparse = Some(if sparse.map_in_data {
                self.pax_sparse_map()?
            } else {
                sparse.map
            });
        }
        if let Some(map) = &member.sparse {
            check_sparse(map, self.data_left, member.size)?;
        }
        Ok(Some(member))
    }

    /// The map of old GNU format: four fragments in the header, 21 in each extension block.
    fn gnu_sparse_map(&mut self, header: &Header) -> io::Result<(Vec<(u64, u64)>, u64)> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| invalid("a sparse tar member without a GNU header"))?;
        let mut map = Vec::new();
        for fragment in gnu.sparse.iter().filter(|fragment| !fragment.is_empty()) {
            map.push((fragment.offset()?, fragment.length()?));
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            if !read_block(&mut self.input, block.as_mut_bytes())? || map.len() > SPARSE_LIMIT {
                return Err(invalid(
                    "the map of a sparse tar member is truncated or has more than 262,144 fragments",
                ));
            }
            for fragment in block.sparse.iter().filter(|fragment| !fragment.is_empty()) {
                map.push((fragment.offset()?, fragment.length()?));
            }
            more = block.is_extended();
        }
        Ok((map, gnu.real_size()?))
    }

    /// The map of pax format 1.0: decimal lines before the data, padded to a block.
    fn pax_sparse_map(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut lines = BlockLines {
            members: self,
            block: VecDeque::new(),
        };
        let count = lines.number()?;
        if count > SPARSE_LIMIT as u64 {
            return Err(invalid(
                "a sparse tar member has more than 262,144 fragments",
            ));
        }
        (0..count)
            .map(|_| Ok((lines.number()?, lines.number()?)))
            .collect()
    }
}

/// Decimal numbers, one a line, taken from whole blocks of a member's data.
struct BlockLines<'a, R> {
    members: &'a mut Members<R>,
    block: VecDeque<u8>,
}

impl<R: Read> BlockLines<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut number: u64 = 0;
        loop {
            if self.block.is_empty() {
                let mut block = [0; BLOCK as usize];
                self.members.read_exact(&mut block)?;
                self.block.extend(block);
            }
            match self.block.pop_front() {
                Some(b'\n') => return Ok(number),
                Some(digit @ b'0'..=b'9') => {
                    let digit = u64::from(digit - b'0');
                    let next = number
                        .checked_mul(10)
                        .and_then(|tens| tens.checked_add(digit));
                    number =
                        next.ok_or_else(|| invalid("a number of a sparse map is too large"))?;
                }
                _ => return Err(invalid("the sparse map of a tar member is malformed")),
            }
        }
    }
}

impl<R: Read> Read for Members<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.by_ref().take(self.data_left).read(buffer)?;
        if count == 0 && self.data_left > 0 && !buffer.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the tar archive is truncated",
            ));
        }
        self.data_left = self.data_left.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Whether a file that begins with `block` is a tar archive.
pub fn is_tar(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; BLOCK as usize]>::try_from(block) else {
        return false;
    };
    let header = Header::from_byte_slice(block);
    header.cksum().is_ok_and(|sum| sum == checksum(header))
}

fn checksum(header: &Header) -> u32 {
    let (before, rest) = header.as_bytes().split_at(148);
    before
        .iter()
        .chain(rest.iter().skip(8))
        .map(|byte| u32::from(*byte))
        .sum::<u32>()
        + 8 * 32
}

/// Fills a block; false at a clean end of the stream.
fn read_block(input: &mut impl Read, block: &mut [u8; BLOCK as usize]) -> io::Result<bool> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the tar archive is truncated",
                ));
            }
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn kind(header: &Header, pax: &Records) -> io::Result<Option<Kind>> {
    let device = || -> io::Result<(u32, u32)> {
        let number = |field: io::Result<Option<u32>>| field.map(Option::unwrap_or_default);
        Ok((
            number(header.device_major())?,
            number(header.device_minor())?,
        ))
    };
    Ok(Some(match header.entry_type() {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => device().map(|(major, minor)| Kind::CharDevice { major, minor })?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice { major, minor })?,
        // A volume label names no file.
        other if other.as_byte() == b'V' => return Ok(None),
        other => {
            let name = pax
                .path
                .clone()
                .unwrap_or_else(|| header.path_bytes().into_owned());
            let name = String::from_utf8_lossy(&name).into_owned();
            return Err(invalid(&format!(
                "member {name:?} has the unknown tar type {:?}",
                other.as_byte() as char
            )));
        }
    }))
}

fn check_sparse(map: &[(u64, u64)], data: u64, size: u64) -> io::Result<()> {
    let (mut end, mut total) = (0, 0_u64);
    for (offset, length) in map {
        if *offset < end {
            return Err(invalid("the fragments of a sparse tar member overlap"));
        }
        end = offset
            .checked_add(*length)
            .ok_or_else(|| invalid("a sparse tar member is too large"))?;
        total = total.saturating_add(*length);
    }
    if end > size || total != data {
        return Err(invalid(
            "the map of a sparse tar member doesn't agree with its size",
        ));
    }
    Ok(())
}

fn header_time(header: &Header) -> io::Result<Time> {
    // Base-256 times before 1970 come out as huge numbers; the cast is two's complement on purpose.
    Ok(Time {
        seconds: header.mtime()? as i64,
        nanoseconds: 0,
    })
}

fn id(name: &str, value: u64) -> io::Result<u32> {
    // u32::MAX means "leave it" to chown.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or_else(|| {
            invalid(&format!(
                "{name} {value} of a tar member does not fit into 32 bits"
            ))
        })
}

pub(super) fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
