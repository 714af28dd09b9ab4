//! x86_64: PVH boot without firmware, MP table instead of ACPI, in-kernel APICs, no PIT (kvm-clock and the TSC
//! deadline timer do without), i8042 for the reset.

pub mod boot;
mod cpuid;
pub mod layout;
mod mptable;
mod ports;
pub mod probe;
mod pvh;
mod vcpu;

pub use boot::Boot;
pub use layout::{MAX_DEVICES, device_place, ram_map};
pub use ports::Ports;
pub use vcpu::{create_vcpus, guest_phys_bits};

use crate::kvm::{KvmError, Vm};

/// The ELF machine that a guest kernel must be built for.
pub const MACHINE: &str = "x86_64";

/// Creates PIC, IOAPIC and local APICs, and tells KVM which pages Intel processors without "unrestricted guest" borrow.
///
/// # Errors
/// KVM refuses.
pub fn prepare_vm(vm: &Vm) -> Result<(), KvmError> {
    vm.fd()
        .set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(KvmError::during("set the identity map address"))?;
    vm.fd()
        .set_tss_address(layout::TSS as usize)
        .map_err(KvmError::during("set the TSS address"))?;
    vm.fd()
        .create_irq_chip()
        .map_err(KvmError::during("create the interrupt controllers"))
}

/// What the kernel must be told about this platform.
pub fn platform_options(serial: bool) -> &'static str {
    // reboot=k: the only way to reset here is the keyboard controller. rcu_expedited: waits of tens of milliseconds at boot
    // become microseconds. ttynull: PID 1 gets a console that discards. swiotlb=noforce: saves 64 MiB above 4 GiB of RAM, no device here has an address limit.
    if serial {
        "reboot=k tsc=reliable swiotlb=noforce rcupdate.rcu_expedited=1 console=ttyS0"
    } else {
        "reboot=k tsc=reliable swiotlb=noforce rcupdate.rcu_expedited=1 quiet console=ttynull 8250.nr_uarts=0"
    }
}
