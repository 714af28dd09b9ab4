//! Extended header records of pax archives, those that matter to a file system (POSIX pax, GNU sparse, SCHILY.xattr).

use std::io;

use super::member::{Time, invalid};

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What the records say of the next member.
#[derive(Default, Debug)]
pub struct Records {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub size: Option<u64>,
    pub mtime: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Option<Sparse>,
}

/// The GNU.sparse records (formats 0.0, 0.1 and 1.0).
#[derive(Default, Debug)]
pub struct Sparse {
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    pub map: Vec<(u64, u64)>,
    /// Format 1.0: the map stands before the data.
    pub map_in_data: bool,
}

/// Parses `LENGTH KEY=VALUE\n` records; values may hold any byte.
pub fn parse(mut bytes: &[u8]) -> io::Result<Records> {
    let mut records = Records::default();
    // Some writers pad with NULs.
    while bytes.first().is_some_and(|byte| *byte != 0) {
        let malformed = || invalid("malformed pax record");
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(malformed)?;
        let length = number(bytes.get(..space).unwrap_or_default())?;
        let length = usize::try_from(length).map_err(|_| malformed())?;
        let record = bytes.get(space + 1..length).ok_or_else(malformed)?;
        let (b'\n', record) = record.split_last().ok_or_else(malformed)? else {
            return Err(malformed());
        };
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(malformed)?;
        let (key, value) = record.split_at(equals);
        records.set(key, value.get(1..).unwrap_or_default())?;
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Ok(records)
}

impl Records {
    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Ok(());
        }
        if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.get_or_insert_default().set(key, value);
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"size" => self.size = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ => {}
        }
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" | b"size" => self.real_size = Some(number(value)?),
            b"major" => self.map_in_data = number(value)? >= 1,
            b"offset" => self.map.push((number(value)?, 0)),
            b"numbytes" => match self.map.last_mut() {
                Some(last) => last.1 = number(value)?,
                None => return Err(invalid("a sparse fragment without an offset")),
            },
            b"map" if value.is_empty() => {}
            b"map" => {
                let numbers = value
                    .split(|byte| *byte == b',')
                    .map(number)
                    .collect::<io::Result<Vec<u64>>>()?;
                let pairs = numbers.chunks(2).map(|pair| match pair {
                    [offset, length] => Ok((*offset, *length)),
                    _ => Err(invalid("a sparse map with an odd count of numbers")),
                });
                self.map = pairs.collect::<io::Result<_>>()?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn number(text: &[u8]) -> io::Result<u64> {
    let parsed = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| invalid("a pax record holds something else than a number"))
}

/// Decimal seconds with a fraction, perhaps negative (POSIX pax "mtime").
fn time(text: &[u8]) -> io::Result<Time> {
    let bad = || invalid("a pax record holds a malformed time");
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let nanoseconds = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = nanoseconds.fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    // -1.25 is 0.75 seconds after -2.
    if whole.starts_with('-') && nanoseconds > 0 {
        return Ok(Time {
            seconds: seconds.checked_sub(1).ok_or_else(bad)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Ok(Time {
        seconds,
        nanoseconds,
    })
}
