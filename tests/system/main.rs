//! The system tests: what a user of vmbox was promised, tried on real KVM with real guests.
//!
//! Run by `cargo dev test`, inside a host whose KVM works; see `tests/README.md`.
#![allow(clippy::unwrap_used)]

mod bad_input;
mod bundle;
mod busybox;
mod containerd;
mod docker;
mod engines;
mod faults;
mod kit;
mod limits;
mod machine;
mod monitor;
mod mounts;
mod network;
mod oci;
mod podman;
mod pods;
mod seccomp;
mod share;
mod signals;
mod spec;
mod streams;
mod terminal;
mod volumes;
mod workload;
