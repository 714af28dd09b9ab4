//! aarch64: an Image and a device tree without firmware, GICv3, the architected timer, PSCI in KVM for processors,
//! reset and power-off.

mod boot;
mod fdt;
mod gic;
mod image;
mod layout;
mod legacy;
mod options;
pub mod probe;
mod registers;
mod vcpu;

pub use boot::Boot;
pub use layout::{MAX_DEVICES, SERIAL_IRQ, device_place, ram_map};
pub use legacy::Legacy;
pub use options::{COMMAND_LINE_SIZE, kernel_options};
pub use vcpu::Processor;

/// The architecture's name, as in `uname -m`.
pub const MACHINE: &str = "aarch64";
/// ELF's `e_machine` of this architecture.
pub const ELF_MACHINE: u16 = 183;
/// The kernel file that boots here.
pub const KERNEL_NEEDED: &str = "an uncompressed, little-endian aarch64 Image";
/// How people come by a /dev/kvm that is missing.
pub const KVM_HINT: &str = "KVM is part of most aarch64 kernels and needs one that was started in EL2: switch virtualization on in the firmware, or use bare metal or a cloud instance type with nested virtualization";
