//! The mounts that this process sees (proc_pid_mountinfo(5)).

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// As in `stx_mnt_id` of statx(2).
    pub id: u64,
    /// Where it is.
    pub mount_point: PathBuf,
    /// The type of its file system.
    pub kind: String,
}

/// All of them, in the order in which they were mounted.
///
/// # Errors
/// The table can't be read.
pub fn read() -> io::Result<Vec<Mounted>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(parse).collect())
}

/// Whether something is mounted below a path.
pub fn has_mounts_below(path: &Path) -> bool {
    let (Ok(path), Ok(table)) = (fs::canonicalize(path), read()) else {
        return false;
    };
    let mut points = table.into_iter().map(|mounted| mounted.mount_point);
    points.any(|point| point != path && point.starts_with(&path))
}

/// Its first and fifth field, and the first of those behind the dash.
fn parse(line: &str) -> Option<Mounted> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    Some(Mounted {
        id: fields.next()?.parse().ok()?,
        mount_point: decoded(fields.nth(3)?),
        kind: file_system.split(' ').next()?.to_owned(),
    })
}

/// `\040` and the like are characters that would end a field.
fn decoded(field: &str) -> PathBuf {
    let text = ["\\040= ", "\\011=\t", "\\012=\n", "\\134=\\"]
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .fold(field.to_owned(), |text, (code, plain)| {
            text.replace(code, plain)
        });
    PathBuf::from(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_below_is_not_what_is_mounted_there() {
        assert!(has_mounts_below(Path::new("/")));
        for path in ["/proc/self/fd", "/no/such"] {
            assert!(!has_mounts_below(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_mount_has_its_id_its_place_and_its_type() {
        let line = "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw";
        let mounted = Mounted {
            id: 36,
            mount_point: "/mnt/a b".into(),
            kind: "ext3".into(),
        };
        assert_eq!(parse(line), Some(mounted));
    }
}
