//! The one place that knows which processor this is built for. An architecture is a module with these items:
//!
//! - `MACHINE`, `ELF_MACHINE`, `KERNEL_NEEDED`, `KVM_HINT`: what it is called and what people need for it;
//! - `ram_map(memory_mib)`, `MAX_DEVICES`, `device_place(index)`, `SERIAL_IRQ`: the address map, and the interrupts;
//! - `Processor`: what KVM offers here, asked once: `phys_bits()`, `vm_type(end)`, and `create_vcpus(vm, count)`,
//!   which makes the interrupt controller and the vCPUs in the order in which KVM wants them;
//! - `Boot`: `load(…)` puts kernel and guest image into RAM, `describe(…)` tells the kernel of its machine,
//!   `enter(vcpus)` sets the registers with which it begins;
//! - `kernel_options(serial, devices)`, `COMMAND_LINE_SIZE`: the platform's part of the kernel command line;
//! - `Legacy`: the devices that are not virtio; `probe`: the smallest guest that proves that KVM works.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub use aarch64::*;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("vmbox-vmm is built for x86_64 and aarch64");
