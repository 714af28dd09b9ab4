//! The host library behind `vmbox` and the containerd shim: pods, images, guests, streams, and the journal that undoes them.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod guest;
pub mod journal;
pub mod network;
pub mod oci;
pub mod pod;
pub mod stdio;
pub mod storage;
pub mod user;
pub mod vm;
