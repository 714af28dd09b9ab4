//! Attributes and extended attributes are the host's.

use std::os::unix::fs::symlink;

use super::*;

const MODE: u32 = 1;
const UID: u32 = 2;
const SIZE: u32 = 8;
const ATIME: u32 = 0x10;
const MTIME: u32 = 0x20;
const KILL: u32 = 0x800;

/// The fields of `struct fuse_setattr_in` that these tests set.
#[derive(Default)]
struct Set {
    size: u64,
    seconds: u64,
    mode: u32,
    uid: u32,
}

impl Guest {
    fn setattr(&mut self, node: u64, valid: u32, set: &Set) -> Answer {
        let mut body = words(&[valid, 0]);
        for field in [0, set.size, 0, set.seconds, set.seconds, 0] {
            body.extend(field.to_le_bytes());
        }
        body.extend(words(&[5, 6, 0, set.mode, 0, set.uid, 0, 0]));
        self.ask(4, node, &body, 104)
    }

    fn setxattr(&mut self, node: u64, name: &str, value: &[u8]) -> Answer {
        let body = [words(&[value.len() as u32, 0]), cstr(name), value.to_vec()].concat();
        self.ask(21, node, &body, 0)
    }

    fn getxattr(&mut self, node: u64, name: &str, size: u32) -> Answer {
        let body = [words(&[size, 0]), cstr(name)].concat();
        self.ask(22, node, &body, (size as usize).clamp(8, 1 << 16))
    }
}

#[test]
fn mode_size_and_times_are_set() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    let set = Set {
        size: 4097,
        seconds: 1_000_000_000,
        mode: 0o4711,
        ..Default::default()
    };
    let answer = guest.setattr(node, MODE | SIZE | ATIME | MTIME, &set);
    assert_eq!(answer.errno, 0);
    let host = guest.host("f");
    assert_eq!(host.mode() & 0o7777, 0o4711);
    assert_eq!(host.len(), 4097);
    assert_eq!((host.mtime(), host.mtime_nsec()), (1_000_000_000, 6));
}

#[test]
fn times_of_a_symbolic_link_are_its_own() {
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("target"), "").unwrap();
    symlink("target", guest.path().join("link")).unwrap();
    let link = guest.lookup(ROOT, "link").node();
    let set = Set {
        seconds: 1_000_000_000,
        ..Default::default()
    };
    assert_eq!(guest.setattr(link, ATIME | MTIME, &set).errno, 0);
    assert_eq!(guest.host("link").mtime(), 1_000_000_000);
    assert_ne!(guest.host("target").mtime(), 1_000_000_000);
}

#[test]
fn owner_of_a_symbolic_link_is_its_own() {
    if !is_root() {
        eprintln!("skipped: giving files away needs root");
        return;
    }
    let mut guest = Guest::new();
    symlink("/", guest.path().join("link")).unwrap();
    let link = guest.lookup(ROOT, "link").node();
    let set = Set {
        uid: 1234,
        ..Default::default()
    };
    assert_eq!(guest.setattr(link, UID, &set).errno, 0);
    assert_eq!(guest.host("link").uid(), 1234);
}

#[test]
fn writing_and_truncating_kill_set_user_id_when_asked() {
    const WRITE_KILL: u32 = 4;
    if !is_root() {
        eprintln!("skipped: set-user-ID stays only for root");
        return;
    }
    let mut guest = Guest::new();
    let file = guest.create(ROOT, "f", libc::O_RDWR, 0o4755);
    guest.write(file, 0, b"x", libc::O_RDWR);
    assert_eq!(guest.host("f").mode() & 0o7777, 0o4755);
    guest.write_as(file, 0, b"x", libc::O_RDWR, WRITE_KILL);
    assert_eq!(guest.host("f").mode() & 0o7777, 0o755);
    let set = Set {
        mode: 0o4755,
        ..Default::default()
    };
    guest.setattr(file.0, MODE, &set);
    guest.setattr(file.0, SIZE | KILL, &set);
    assert_eq!(guest.host("f").mode() & 0o7777, 0o755);
}

#[test]
fn extended_attributes_are_set_listed_read_and_removed() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    if guest.setxattr(node, "user.a", b"value").errno == libc::EOPNOTSUPP {
        eprintln!("skipped: the file system of temporary files has no extended attributes");
        return;
    }
    assert_eq!(guest.getxattr(node, "user.a", 0).u32(0), 5);
    assert_eq!(guest.getxattr(node, "user.a", 64).data, b"value");
    assert_eq!(guest.getxattr(node, "user.a", 2).errno, libc::ERANGE);
    let names = guest.ask(23, node, &words(&[4096, 0]), 4096).data;
    assert!(names.windows(7).any(|name| name == b"user.a\0"));
    assert_eq!(guest.ask(24, node, &cstr("user.a"), 0).errno, 0);
    assert_eq!(guest.getxattr(node, "user.a", 64).errno, libc::ENODATA);
}

#[test]
fn extended_attribute_as_large_as_memory_is_not_allocated() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR, 0o644);
    assert_eq!(
        guest.getxattr(node, "user.none", u32::MAX).errno,
        libc::ENODATA
    );
    let listed = guest.ask(23, node, &words(&[u32::MAX, 0]), 4096);
    assert_eq!(listed.errno, 0);
}

#[test]
fn statx_tells_what_stat_does() {
    let mut guest = Guest::new();
    let (node, _) = guest.create(ROOT, "f", libc::O_RDWR, 0o640);
    let answer = guest.ask(52, node, &[0; 24], 288);
    assert_eq!(answer.errno, 0);
    let stat = 32;
    assert_eq!(answer.data.len(), 288);
    assert_eq!(answer.u32(stat) & 0x7ff, 0x7ff, "basic statistics");
    assert_eq!(answer.u32(stat + 28) & 0xffff, libc::S_IFREG | 0o640);
    assert_eq!(answer.u64(stat + 32), guest.host("f").ino());
}

#[test]
fn file_system_statistics_are_the_hosts() {
    let mut guest = Guest::new();
    let answer = guest.ask(17, ROOT, &[], 80);
    let host = rustix::fs::statvfs(guest.path()).unwrap();
    assert_eq!(answer.u64(0), host.f_blocks);
    assert_eq!(u64::from(answer.u32(44)), host.f_namemax);
}
