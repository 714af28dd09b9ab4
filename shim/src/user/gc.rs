//! `vmbox gc` and `vmbox rm`: removing what is left, by accident or on purpose.

use super::{complain, one_line, run_dir, store_dir};
use crate::{
    journal,
    pod::{ContainerId, place::PodDir, rootfs},
};

/// Undoes the journals of all pods whose owners are dead.
pub fn gc() -> u8 {
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
