//! Users of a root file system.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::kit::chain;
use crate::storage::{User, resolve_user};

fn rootfs() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    fs::create_dir(temp.path().join("etc")).unwrap();
    let passwd = "root:x:0:0:root:/root:/bin/sh\n# no entry\nbroken:x\nweb:x:33:34:Web:/srv/web:/bin/sh\n77:x:1077:1077::/home/77:\n";
    fs::write(temp.path().join("etc/passwd"), passwd).unwrap();
    fs::write(
        temp.path().join("etc/group"),
        "root:x:0:\nstaff:x:50:web,root\naudio:x:29:web\nweb:x:34:\n",
    )
    .unwrap();
    temp
}

fn user(uid: u32, gid: u32, additional_gids: &[u32], home: &str) -> User {
    User {
        uid,
        gid,
        additional_gids: additional_gids.into(),
        home: home.into(),
    }
}

fn resolved(root: &Path, spec: &str) -> User {
    resolve_user(root, spec).unwrap()
}

#[test]
fn names_and_numbers_resolve_as_docker_does() {
    let root = rootfs();
    let root = root.path();
    assert_eq!(resolved(root, ""), user(0, 0, &[50], "/root"));
    assert_eq!(resolved(root, "web"), user(33, 34, &[29, 50], "/srv/web"));
    assert_eq!(resolved(root, "33"), user(33, 34, &[29, 50], "/srv/web"));
    assert_eq!(resolved(root, "web:staff"), user(33, 50, &[], "/srv/web"));
    assert_eq!(resolved(root, "1234:4321"), user(1234, 4321, &[], "/"));
    assert_eq!(resolved(root, "1234"), user(1234, 0, &[], "/"));
    assert_eq!(resolved(root, "77"), user(1077, 1077, &[], "/home/77"));
    assert_eq!(resolved(&root.join("etc"), "5").uid, 5);
}

#[test]
fn unknown_names_are_named() {
    let root = rootfs();
    assert!(
        resolve_user(root.path(), "nobody")
            .unwrap_err()
            .to_string()
            .contains("no user \"nobody\"")
    );
    assert!(
        resolve_user(root.path(), "web:wheel")
            .unwrap_err()
            .to_string()
            .contains("no group \"wheel\"")
    );
    assert!(resolve_user(root.path(), "-1").is_err());
    assert!(resolve_user(root.path(), "4294967295").is_err());
}

#[test]
fn links_stay_in_the_root_file_system() {
    let root = rootfs();
    let passwd = root.path().join("etc/passwd");
    fs::rename(&passwd, root.path().join("users")).unwrap();
    symlink("/users", &passwd).unwrap();
    assert_eq!(resolved(root.path(), "web").uid, 33);
    fs::remove_file(&passwd).unwrap();
    symlink("../../../../../../etc/passwd", &passwd).unwrap();
    // Resolves to itself within the root: a loop, and never the host's file.
    assert!(chain(&resolve_user(root.path(), "web").unwrap_err()).contains("etc/passwd"));
}

#[test]
fn a_fifo_does_not_hang() {
    let root = rootfs();
    let passwd = root.path().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    let mode = rustix::fs::Mode::RWXU;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &passwd,
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    assert!(chain(&resolve_user(root.path(), "web").unwrap_err()).contains("no regular file"));
}
