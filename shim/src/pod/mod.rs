//! Pods and their containers: names, wishes, and what they become in a guest.

pub mod binds;
pub mod capabilities;
pub mod container;
pub mod design;
mod id;
pub mod idmap;
pub mod mount_table;
pub mod options;
pub mod owner;
pub mod place;
pub mod refuse;
pub mod rootfs;
pub mod seccomp;
pub mod size;
pub mod spec;
pub mod tree;
mod user_namespace;

pub use id::{BadId, ContainerId, fill_random};
