//! What is left of a container in the guest when it is deleted, and its removal.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cgroup::Cgroup;
use crate::executor;
use crate::spec::ContainerId;

/// Kills and removes everything that a container has in the guest. Its processes may still be on their way out.
pub async fn remove_traces(id: &ContainerId, bundle: &Path, cgroup: &Cgroup) {
    cgroup.kill();
    let empty = {
        let cgroup = cgroup.clone();
        move || !cgroup.is_populated()
    };
    if let Err(error) = crate::cgroup::wait_for_event(cgroup, empty).await {
        crate::log::warn(&format!(
            "vmbox-agent: {}: {error}",
            cgroup.path().display()
        ));
    }
    if let Err(error) = cgroup.remove() {
        crate::log::warn(&format!(
            "vmbox-agent: remove {}: {error}",
            cgroup.path().display()
        ));
    }
    let _ = fs::remove_dir_all(Path::new(executor::STATE).join(id.as_str()));
    let _ = fs::remove_dir_all(bundle);
    leave_share(id);
}

/// Unmounts the container's part of every share. What the host mounted there is a mount of its own here (a FUSE submount),
/// and for as long as it stays, its cached inodes hold descriptors open in the host's file server.
fn leave_share(id: &ContainerId) {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return;
    };
    for target in mounts_below(&mounts, Path::new(crate::pod::SHARES), id.as_str()) {
        if let Err(error) = nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH) {
            crate::log::warn(&format!(
                "vmbox-agent: unmount {}: {error}",
                target.display()
            ));
        }
    }
}

/// The mount points `<shares>/<tag>/<id>/…` of a mountinfo table, innermost first.
fn mounts_below(mountinfo: &str, shares: &Path, id: &str) -> Vec<PathBuf> {
    let is_ours = |target: &Path| {
        let below = target.strip_prefix(shares).ok();
        below
            .and_then(|rest| rest.components().nth(1))
            .is_some_and(|name| name.as_os_str() == id)
    };
    let targets = mountinfo
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    let mut found: Vec<_> = targets.filter(|target| is_ours(target)).collect();
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_containers_own_mounts_are_left_innermost_first() {
        let table = "20 1 0:2 / /run/vmbox/shares/vmbox rw - virtiofs vmbox rw\n\
                     21 20 0:3 / /run/vmbox/shares/vmbox/a/rootfs rw - virtiofs none rw\n\
                     22 21 0:4 / /run/vmbox/shares/vmbox/a/rootfs/x rw - virtiofs none rw\n\
                     23 20 0:5 / /run/vmbox/shares/vmbox/ab/rootfs rw - virtiofs none rw\n";
        let found = mounts_below(table, Path::new("/run/vmbox/shares"), "a");
        assert_eq!(
            found,
            [
                Path::new("/run/vmbox/shares/vmbox/a/rootfs/x"),
                Path::new("/run/vmbox/shares/vmbox/a/rootfs")
            ]
        );
    }
}
