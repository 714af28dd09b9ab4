//! `vmbox-vmm`: reads a VmConfig, boots it, lives until the guest ends.
fn main() {}
