//! The smallest image that an engine can import: the host's static busybox, and a link for each of its applets.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the image as a tar archive below `dir`, for `podman import` and `docker import`.
pub fn archive(dir: &Path) -> PathBuf {
    let root = dir.join("busybox");
    let archive = dir.join("busybox.tar");
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let busybox = root.join("bin/busybox");
    fs::copy("/bin/busybox", &busybox).unwrap();
    let applets = Command::new(&busybox).arg("--list").output().unwrap();
    for applet in String::from_utf8(applets.stdout).unwrap().lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nweb:x:5:6:web:/tmp:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nweb:x:6:\n").unwrap();
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".");
    assert!(tar.status().unwrap().success());
    archive
}
