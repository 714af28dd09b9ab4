//! The GICv3 in KVM (Documentation/virt/kvm/devices/arm-vgic-v3.rst): created when all vCPUs exist, initialised before
//! the first runs and before the first irqfd, which it would refuse with EAGAIN.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::DeviceFd;

use super::layout::{DISTRIBUTOR, REDISTRIBUTORS, SPIS};
use crate::kvm::{KvmError, Vm};

/// Private interrupts (SGIs and PPIs), which every processor has.
const PRIVATE_IRQS: u32 = 32;

/// Makes the interrupt controller of a VM whose vCPUs exist. The VM keeps it; there is nothing to hold on to.
///
/// # Errors
/// The host has no GICv3, or KVM refuses.
pub fn create(vm: &Vm) -> Result<(), KvmError> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        fd: 0,
        flags: 0,
    };
    let gic = vm.fd().create_device(&mut device).map_err(refusal)?;
    let irqs = PRIVATE_IRQS + SPIS;
    set(
        &gic,
        KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
        0,
        &raw const irqs as u64,
    )?;
    for (kind, address) in [
        (KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR.base),
        (KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTORS),
    ] {
        set(
            &gic,
            KVM_DEV_ARM_VGIC_GRP_ADDR,
            kind,
            &raw const address as u64,
        )?;
    }
    set(
        &gic,
        KVM_DEV_ARM_VGIC_GRP_CTRL,
        KVM_DEV_ARM_VGIC_CTRL_INIT,
        0,
    )
}

/// KVM has no such device (ENODEV) where the host's own interrupt controller is an older one.
fn refusal(errno: kvm_ioctls::Error) -> KvmError {
    match errno.errno() {
        libc::ENODEV => KvmError::Unfit(
            "its interrupt controller is no GICv3, and KVM can't give guests one without; use a machine with GICv3 or newer",
        ),
        _ => KvmError::during("create the interrupt controller")(errno),
    }
}

fn set(gic: &DeviceFd, group: u32, attribute: u32, value: u64) -> Result<(), KvmError> {
    gic.set_device_attr(&kvm_device_attr {
        group,
        attr: u64::from(attribute),
        addr: value,
        flags: 0,
    })
    .map_err(KvmError::during("set up the interrupt controller"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_gicv3_is_told_so_in_one_line() {
        let told = refusal(kvm_ioctls::Error::new(libc::ENODEV)).to_string();
        assert!(told.contains("no GICv3") && !told.contains('\n'), "{told}");
        let other = refusal(kvm_ioctls::Error::new(libc::ENOMEM));
        assert!(matches!(other, KvmError::Failed { .. }), "{other}");
    }
}
