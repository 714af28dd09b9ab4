//! x86_64: PVH boot without firmware, MP table instead of ACPI, in-kernel APICs, no PIT (kvm-clock and the TSC
//! deadline timer do without), i8042 for the reset.

pub mod boot;
mod cpuid;
pub mod layout;
mod legacy;
mod mptable;
mod options;
pub mod probe;
mod pvh;
mod vcpu;
mod vmlinux;

pub use boot::Boot;
pub use layout::{COMMAND_LINE_SIZE, MAX_DEVICES, device_place, ram_map};
pub use legacy::{Legacy, SERIAL_IRQ};
pub use options::kernel_options;
pub use vcpu::Processor;

/// The architecture's name, as in `uname -m`.
pub const MACHINE: &str = "x86_64";
/// ELF's `e_machine` of this architecture.
pub const ELF_MACHINE: u16 = 62;
/// The kernel file that boots here.
pub const KERNEL_NEEDED: &str = "an uncompressed x86_64 ELF vmlinux with CONFIG_PVH=y";
/// How people come by a /dev/kvm that is missing.
pub const KVM_HINT: &str = "load the kvm_intel or kvm_amd module (modprobe kvm_intel), switch virtualization on in the firmware, or use a machine or cloud instance type with (nested) virtualization";
