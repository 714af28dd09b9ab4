//! Directories and files of the host in a container.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use crate::kit::Corner;

#[test]
fn what_the_guest_writes_is_read_on_the_host_with_owner_and_mode() {
    let corner = Corner::new("volume");
    let dir = corner.path("shared");
    fs::create_dir(&dir).unwrap();
    let volume = format!("{}:/data", dir.display());
    corner
        .sh(
            &["-v", &volume],
            "echo from the guest > /data/file; chown 1234:4321 /data/file; chmod 640 /data/file",
        )
        .exits(0);
    let meta = fs::metadata(dir.join("file")).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o7777),
        (1234, 4321, 0o640)
    );
    assert_eq!(
        fs::read_to_string(dir.join("file")).unwrap(),
        "from the guest\n"
    );
}

#[test]
fn what_the_host_writes_is_read_in_the_guest_with_owner_and_mode() {
    let corner = Corner::new("volume-in");
    let dir = corner.path("shared");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("file"), "from the host").unwrap();
    fs::set_permissions(dir.join("file"), fs::Permissions::from_mode(0o604)).unwrap();
    std::os::unix::fs::chown(dir.join("file"), Some(77), Some(88)).unwrap();
    let volume = format!("{}:/data", dir.display());
    let out = corner
        .sh(
            &["-v", &volume],
            "cat /data/file; echo; stat -c '%u %g %a' /data/file",
        )
        .exits(0);
    assert_eq!(out, "from the host\n77 88 604\n");
}

#[test]
fn a_read_only_volume_refuses_writes() {
    let corner = Corner::new("volume-ro");
    let dir = corner.path("shared");
    fs::create_dir(&dir).unwrap();
    let volume = format!("{}:/data:ro", dir.display());
    let done = corner.sh(&["-v", &volume], "touch /data/file");
    assert!(
        done.stderr.contains("Read-only file system"),
        "{}",
        done.stderr
    );
    assert!(!dir.join("file").exists());
}

#[test]
fn a_single_file_is_a_volume_too() {
    let corner = Corner::new("volume-file");
    fs::write(corner.path("one"), "single\n").unwrap();
    let volume = format!("{}:/etc/one", corner.path("one").display());
    assert_eq!(
        corner
            .sh(&["-v", &volume], "cat /etc/one; echo changed > /etc/one")
            .exits(0),
        "single\n"
    );
    assert_eq!(fs::read_to_string(corner.path("one")).unwrap(), "changed\n");
}
