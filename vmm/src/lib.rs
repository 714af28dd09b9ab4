//! The KVM monitor: boots one VM from a `VmConfig` and lives until its guest ends. Start reading at
//! [`machine::assemble`].
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod arch;
pub mod boot;
pub mod control;
pub mod ending;
pub mod event;
mod inherited;
pub mod kvm;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod ramoops;
pub mod report;
pub mod run;
pub mod tap;
mod tuning;
pub mod vcpu;

pub use inherited::adopt;
pub use tuning::{reserve_descriptors, tune_allocator};
