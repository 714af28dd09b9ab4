//! Everything the guest can touch. No KVM here, no containers, and guest bytes can't panic it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod balloon;
pub mod blk;
pub mod device;
pub mod fs;
pub mod legacy;
pub mod mem;
pub mod net;
pub mod queue;
pub mod ram;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod transport;
pub mod vsock;
pub mod worker;
