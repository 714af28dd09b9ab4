//! What a layer's members become on disk.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::lgetxattr;
use tar::EntryType;

use super::kit::{Tar, apply, chain, inventory};

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = lgetxattr(path, name, value.as_mut_slice()).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn owner_mode_and_time_are_kept() {
    let temp = tempfile::tempdir().unwrap();
    let mut header = Tar::header(EntryType::Regular, b"bin/su", b"", 0o4755, 1);
    header.set_uid(3_000_000_000);
    header.set_gid(42);
    let tar = Tar::default().dir("bin/", 0o1777).raw(header, b"x").end();
    apply(&tar, temp.path(), &[]).unwrap();
    let su = fs::metadata(temp.path().join("bin/su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.mtime()),
        (0o4755, 3_000_000_000, 42, 1_000_000_000)
    );
    let bin = fs::metadata(temp.path().join("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, 1_000_000_000));
}

#[test]
fn pax_records_override_headers() {
    let temp = tempfile::tempdir().unwrap();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(200));
    let records: [(&str, &[u8]); 4] = [
        ("path", long.as_bytes()),
        ("uid", b"7"),
        ("mtime", b"-1.25"),
        ("gid", b"4000000000"),
    ];
    apply(
        &Tar::default().pax(&records).file("short", b"data").end(),
        temp.path(),
        &[],
    )
    .unwrap();
    let file = fs::metadata(temp.path().join(&long)).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mtime(), file.mtime_nsec()),
        (7, 4_000_000_000, -2, 750_000_000)
    );
    assert!(!temp.path().join("short").exists());
}

#[test]
fn gnu_long_names_are_joined() {
    let temp = tempfile::tempdir().unwrap();
    let (name, target) = (
        format!("{}\0", "n".repeat(180)),
        format!("{}\0", "t".repeat(300)),
    );
    let extension =
        |kind, text: &str| Tar::header(kind, b"././@LongLink", b"", 0, text.len() as u64);
    let tar = Tar::default()
        .raw(extension(EntryType::GNULongName, &name), name.as_bytes())
        .raw(
            extension(EntryType::GNULongLink, &target),
            target.as_bytes(),
        )
        .symlink("n", "t");
    apply(&tar.end(), temp.path(), &[]).unwrap();
    let link = fs::read_link(temp.path().join("n".repeat(180))).unwrap();
    assert_eq!(link.to_str().unwrap(), "t".repeat(300));
}

#[test]
fn binary_xattrs_and_file_capabilities_are_kept() {
    let temp = tempfile::tempdir().unwrap();
    // cap_net_raw+ep, revision 2; with a newline in the value of the other.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let records: [(&str, &[u8]); 3] = [
        ("SCHILY.xattr.security.capability", &capability),
        ("SCHILY.xattr.user.note", b"a\nb=\0c"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
    ];
    let mut header = Tar::header(EntryType::Regular, b"ping", b"", 0o755, 0);
    header.set_uid(5);
    apply(
        &Tar::default().pax(&records).raw(header, b"").end(),
        temp.path(),
        &[],
    )
    .unwrap();
    let ping = temp.path().join("ping");
    assert_eq!(xattr(&ping, "security.capability").unwrap(), capability);
    assert_eq!(xattr(&ping, "user.note").unwrap(), b"a\nb=\0c");
    assert_eq!(xattr(&ping, "trusted.overlay.redirect"), None);
}

#[test]
fn devices_fifos_and_links_are_made() {
    let temp = tempfile::tempdir().unwrap();
    let mut null = Tar::header(EntryType::Char, b"dev/null", b"", 0o666, 0);
    null.set_device_major(1).unwrap();
    null.set_device_minor(3).unwrap();
    let fifo = Tar::header(EntryType::Fifo, b"dev/pipe", b"", 0o622, 0);
    let tar = Tar::default()
        .raw(null, b"")
        .raw(fifo, b"")
        .file("a", b"1")
        .link("b", "/a")
        .symlink("c", "/etc/shadow");
    apply(&tar.end(), temp.path(), &[]).unwrap();
    let null = fs::metadata(temp.path().join("dev/null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(
        (null.rdev(), null.mode() & 0o7777),
        (rustix::fs::makedev(1, 3), 0o666)
    );
    assert!(
        fs::metadata(temp.path().join("dev/pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let inode = |name: &str| fs::metadata(temp.path().join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(
        fs::read_link(temp.path().join("c")).unwrap(),
        Path::new("/etc/shadow")
    );
}

#[test]
fn later_members_replace_earlier_ones() {
    let temp = tempfile::tempdir().unwrap();
    let tar = Tar::default()
        .file("x", b"old")
        .file("d/e/f", b"1")
        .symlink("l", "x")
        .file("l", b"own")
        .file("x", b"new");
    apply(
        &tar.file("d", b"file now").dir("x", 0o700).end(),
        temp.path(),
        &[],
    )
    .unwrap();
    assert_eq!(fs::read(temp.path().join("l")).unwrap(), b"own");
    assert_eq!(fs::read(temp.path().join("d")).unwrap(), b"file now");
    assert!(temp.path().join("x").is_dir());
}

#[test]
fn whiteouts_take_the_form_of_overlayfs() {
    let temp = tempfile::tempdir().unwrap();
    let tar = Tar::default()
        .file("a/.wh.gone", b"")
        .file("b/.wh..wh..opq", b"")
        .file("b/new", b"1");
    let tar = tar
        .file("c/own", b"")
        .file(".wh.c", b"")
        .file(".wh.d", b"")
        .dir("d", 0o755)
        .file(".wh..wh.plnk", b"");
    apply(&tar.end(), temp.path(), &[]).unwrap();
    let gone = fs::symlink_metadata(temp.path().join("a/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["b", "c", "d"] {
        assert_eq!(
            xattr(&temp.path().join(opaque), "trusted.overlay.opaque").unwrap(),
            b"y",
            "{opaque}"
        );
    }
    assert!(temp.path().join("c/own").exists());
    assert!(
        !inventory(temp.path())
            .keys()
            .any(|path| path.to_str().unwrap().contains(".wh."))
    );
}

#[test]
fn hard_links_to_lower_layers_are_copied_up() {
    let temp = tempfile::tempdir().unwrap();
    let [low, middle, top] = ["low", "middle", "top"].map(|name| temp.path().join(name));
    let lower = Tar::default()
        .dir("usr/lib/", 0o751)
        .file("usr/lib/so", b"code")
        .symlink("lib", "usr/lib")
        .file("no", b"");
    apply(&lower.end(), &low, &[]).unwrap();
    apply(
        &Tar::default().file(".wh.no", b"").end(),
        &middle,
        std::slice::from_ref(&low),
    )
    .unwrap();
    let lower = [low, middle];
    let unpacked = apply(&Tar::default().link("copy", "lib/so").end(), &top, &lower).unwrap();
    assert!(unpacked.depends_on_lower);
    let inode = |name: &str| fs::metadata(top.join(name)).unwrap().ino();
    assert_eq!(inode("copy"), inode("usr/lib/so"));
    assert_eq!(fs::read(top.join("copy")).unwrap(), b"code");
    assert_eq!(
        fs::metadata(top.join("usr/lib")).unwrap().mode() & 0o7777,
        0o751
    );
    let error = apply(
        &Tar::default().link("copy", "no").end(),
        &temp.path().join("other"),
        &lower,
    )
    .unwrap_err();
    assert!(
        chain(&error).contains("\"copy\" is a hard link to \"no\""),
        "{}",
        chain(&error)
    );
}

#[test]
fn directories_without_a_member_take_after_the_lower_layer() {
    let temp = tempfile::tempdir().unwrap();
    let [low, top] = ["low", "top"].map(|name| temp.path().join(name));
    apply(&Tar::default().dir("tmp/", 0o1777).end(), &low, &[]).unwrap();
    let unpacked = apply(&Tar::default().file("tmp/x", b"").end(), &top, &[low]).unwrap();
    assert!(unpacked.depends_on_lower);
    let tmp = fs::metadata(top.join("tmp")).unwrap();
    assert_eq!((tmp.mode() & 0o7777, tmp.mtime()), (0o1777, 1_000_000_000));
}

#[test]
fn sparse_files_of_gnu_tar_keep_content_and_holes() {
    let temp = tempfile::tempdir().unwrap();
    let mut content = vec![0; 4 << 20];
    for start in (0..content.len()).step_by(128 << 10) {
        content[start..start + 4096].fill(7);
    }
    let source = temp.path().join("sparse");
    fs::write(&source, &content).unwrap();
    assert!(
        Command::new("fallocate")
            .arg("-d")
            .arg(&source)
            .status()
            .unwrap()
            .success()
    );
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    for (index, format) in formats.iter().enumerate() {
        let mut tar = Command::new("tar");
        let output = tar
            .args(*format)
            .args(["-S", "-c", "-C"])
            .arg(temp.path())
            .arg("sparse")
            .output()
            .unwrap();
        assert!(output.status.success() && output.stdout.len() < content.len() / 2);
        let into = temp.path().join(format!("into{index}"));
        apply(&output.stdout, &into, &[]).unwrap();
        assert!(
            fs::read(into.join("sparse")).unwrap() == content,
            "{format:?}"
        );
        assert!(
            fs::metadata(into.join("sparse")).unwrap().blocks() * 512 < content.len() as u64 / 2,
            "{format:?}"
        );
    }
}
