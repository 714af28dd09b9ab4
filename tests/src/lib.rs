//! The test kit: the developer tool's verbs, and the virtual KVM host on both of its sides.

pub mod arch;
pub mod conformance;
pub mod debian;
pub mod demo;
pub mod host;
pub mod hostd;
pub mod oci_layout;
pub mod product;
pub mod shell;
pub mod streams;
pub mod suite;
pub mod system;
pub mod test_host;
pub mod toolchain;
pub mod workspace;
