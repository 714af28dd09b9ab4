//! Mounts below the root are crossed, also those that appear while the guest runs.

use std::process::Command;

use super::*;

const SUBMOUNT: u32 = 1;

/// A bind mount, taken away at the end of the test.
struct Bind {
    target: std::path::PathBuf,
}

impl Bind {
    /// None where this process may not mount.
    fn new(source: &Path, target: &Path, options: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["--bind", "-o", options]);
        let done = mount.arg(source).arg(target).status().ok()?;
        let target = target.to_path_buf();
        done.success().then_some(Self { target })
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        assert!(
            umount
                .arg("-l")
                .arg(&self.target)
                .status()
                .unwrap()
                .success()
        );
    }
}

/// `attr.flags` of an entry.
fn flags(entry: &Answer) -> u32 {
    entry.u32(40 + 84)
}

#[test]
fn directory_mounted_later_is_announced_and_crossed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("f"), "from outside").unwrap();
    let mut guest = Guest::new();
    let before = guest.mkdir(ROOT, "volume", 0o755);
    assert_eq!(flags(&before), 0);
    let Some(_mount) = Bind::new(outside.path(), &guest.path().join("volume"), "rw") else {
        eprintln!("skipped: may not mount");
        return;
    };
    let volume = guest.lookup(ROOT, "volume");
    assert_ne!(volume.node(), before.node());
    assert_eq!(flags(&volume), SUBMOUNT);
    let file = guest.lookup(volume.node(), "f").node();
    let handle = guest.open(file, libc::O_RDONLY).u64(0);
    assert_eq!(guest.read((file, handle), 0, 64, 64).data, b"from outside");
    guest.create(volume.node(), "made", libc::O_RDWR, 0o644);
    assert!(outside.path().join("made").exists());
}

#[test]
fn single_file_is_mounted_and_written() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    let mut guest = Guest::new();
    std::fs::write(guest.path().join("resolv.conf"), "").unwrap();
    let target = guest.path().join("resolv.conf");
    let Some(_mount) = Bind::new(outside.path(), &target, "rw") else {
        eprintln!("skipped: may not mount");
        return;
    };
    let node = guest.lookup(ROOT, "resolv.conf").node();
    let handle = guest.open(node, libc::O_RDWR).u64(0);
    assert_eq!(
        guest.write((node, handle), 0, b"abc", libc::O_RDWR).errno,
        0
    );
    assert_eq!(std::fs::read(outside.path()).unwrap(), b"abc");
}

#[test]
fn file_seen_by_a_read_only_mount_can_not_be_written_by_way_of_another() {
    let mut guest = Guest::new();
    for name in ["writable", "readonly"] {
        guest.mkdir(ROOT, name, 0o755).node();
    }
    std::fs::write(guest.path().join("writable/f"), "old").unwrap();
    let (source, target) = (guest.path().join("writable"), guest.path().join("readonly"));
    let Some(_mount) = Bind::new(&source, &target, "ro") else {
        eprintln!("skipped: may not mount");
        return;
    };
    let writable = guest.lookup(ROOT, "writable").node();
    let readonly = guest.lookup(ROOT, "readonly").node();
    let first = guest.lookup(writable, "f").node();
    let second = guest.lookup(readonly, "f").node();
    assert_ne!(first, second);
    assert_eq!(guest.open(first, libc::O_RDWR).errno, 0);
    assert_eq!(guest.open(second, libc::O_RDWR).errno, libc::EROFS);
    assert_eq!(guest.open(second, libc::O_RDONLY).errno, 0);
}
