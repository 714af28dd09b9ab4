//! `vmbox gc` and `vmbox rm`: removing what is left, by accident or on purpose.

use super::{complain, one_line, run_dir, store_dir};
use crate::{
    journal,
    pod::{ContainerId, place::PodDir, rootfs},
    storage::Collected,
};

/// Undoes the journals of all pods whose owners are dead, then removes the images' layers that no container uses.
pub fn gc() -> u8 {
    // Pods first: what a dead one has mounted counts as used.
    collect_pods().max(collect_layers())
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
