//! The one place that knows which processor this is built for. An architecture is a module with these items:
//!
//! - `MACHINE`, `MAX_DEVICES`, `device_place(index)`: names and the addresses and interrupts of virtio-mmio devices;
//! - `ram_map(memory_mib)`, `guest_phys_bits(kvm)`: where RAM and DAX windows may lie;
//! - `prepare_vm(vm)`: the interrupt controller and what must exist before vCPUs do;
//! - `platform_options(serial)`: what the kernel command line has to say about the platform;
//! - `Boot::load(…)`: kernel, guest image and tables into RAM; `create_vcpus(…)`: vCPUs ready to run it;
//! - `Ports`: the legacy devices; `probe`: the smallest guest that proves that KVM works.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub use x86_64::*;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("vmbox-vmm is built for x86_64 only, so far");
