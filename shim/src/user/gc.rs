//! `vmbox gc` and `vmbox rm`: removing what is left, by accident or on purpose.

use super::{complain, one_line, run_dir, store_dir};
use crate::{
    journal,
    oci::{self, args::Globals},
    pod::{ContainerId, place::PodDir, rootfs},
    storage::Collected,
};

/// Undoes the journals of all pods whose owners are dead, then removes the images' layers that no container uses.
pub fn gc(globals: &Globals) -> u8 {
    // Containers first, as a pod goes with its last; then pods: what a dead one has mounted counts as used.
    let containers = collect_containers(globals);
    containers.max(collect_pods()).max(collect_layers())
}

fn collect_layers() -> u8 {
    match rootfs::collect_layers(&store_dir()) {
        Ok(Collected::Layers(names)) => {
            names.iter().for_each(|name| println!("layer {name}"));
            0
        }
        Ok(Collected::Busy) => {
            complain("an image is being unpacked: unused layers stay until the next `vmbox gc`");
            0
        }
        Err(error) => {
            complain(&one_line(&error));
            1
        }
    }
}

fn collect_pods() -> u8 {
    let dead = match journal::dead_pods(&run_dir()) {
        Ok(dead) => dead,
        Err(error) => {
            complain(&format!("read {}: {error}", run_dir().display()));
            return 1;
        }
    };
    let mut code = 0;
    for (id, dir, _lock) in dead {
        if oci::has_containers(&dir) {
            continue;
        }
        match journal::undo(&dir) {
            Ok(()) => println!("{id}"),
            Err(error) => {
                complain(&format!("{id}: {}", one_line(&error)));
                code = 1;
            }
        }
    }
    code
}

/// Removes the containers of an OCI engine that it will not come back for.
fn collect_containers(globals: &Globals) -> u8 {
    let root = globals.root.clone().unwrap_or_else(run_dir);
    let mut code = 0;
    for held in oci::abandoned(&root) {
        let id = held.dir.file_name().unwrap_or_default().to_owned();
        match oci::clear(held) {
            Ok(()) => println!("{}", id.display()),
            Err(error) => {
                complain(&format!("{}: {}", id.display(), one_line(&error)));
                code = 1;
            }
        }
    }
    code
}

/// Removes the writable layer that a container without `--rm` has left.
pub fn rm(name: &ContainerId) -> u8 {
    if PodDir::of(&run_dir(), name).path().exists() {
        complain(&format!(
            "{name} is running (or crashed: then `vmbox gc` first)"
        ));
        return 1;
    }
    match rootfs::remove_layer(&store_dir(), name.as_str()) {
        Ok(()) => 0,
        Err(error) => {
            complain(&one_line(&error));
            1
        }
    }
}
