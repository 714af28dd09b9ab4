//! vCPUs as KVM prefers them on this host: the first ready to be entered, the others off until PSCI's CPU_ON.

use kvm_bindings::{
    KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::gic;
use crate::kvm::{KvmError, Vm};

/// Without KVM_CAP_ARM_VM_IPA_SIZE there is this only.
const DEFAULT_IPA_BITS: u8 = 40;
/// KVM takes no less.
const MIN_IPA_BITS: u8 = 32;

/// What this machine's processor and KVM offer a guest, asked once.
pub struct Processor {
    /// None: no choice.
    ipa_limit: Option<u8>,
    /// Bits for KVM_ARM_VCPU_INIT.
    features: u32,
    sve: bool,
}

impl Processor {
    /// Asks.
    ///
    /// # Errors
    /// KVM lacks PSCI.
    pub fn of(kvm: &Kvm) -> Result<Self, KvmError> {
        if !kvm.check_extension(Cap::ArmPsci02) {
            return Err(KvmError::Lacks("KVM_CAP_ARM_PSCI_0_2"));
        }
        let sve = kvm.check_extension(Cap::ArmSve);
        let mut features = 1 << KVM_ARM_VCPU_PSCI_0_2;
        if sve {
            features |= 1 << KVM_ARM_VCPU_SVE;
        }
        // KVM wants both or neither.
        if kvm.check_extension(Cap::ArmPtrAuthAddress)
            && kvm.check_extension(Cap::ArmPtrAuthGeneric)
        {
            features |= 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS | 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC;
        }
        Ok(Self {
            ipa_limit: u8::try_from(kvm.get_host_ipa_limit())
                .ok()
                .filter(|bits| *bits > 0),
            features,
            sve,
        })
    }

    /// The number of guest-physical (in Arm's words: intermediate physical) address bits that a VM can have.
    pub fn phys_bits(&self) -> u8 {
        self.ipa_limit.unwrap_or(DEFAULT_IPA_BITS)
    }

    /// KVM's type of a VM with addresses up to `end`: as many bits as it needs, since fewer mean fewer levels of page
    /// table for the processor to walk.
    pub fn vm_type(&self, end: u64) -> u64 {
        match self.ipa_limit {
            Some(limit) => u64::from(address_bits(end).clamp(MIN_IPA_BITS.min(limit), limit)),
            None => 0,
        }
    }

    /// Creates all vCPUs, then the interrupt controller, which needs them.
    ///
    /// # Errors
    /// KVM refuses, or the host has no GICv3.
    pub fn create_vcpus(&self, vm: &Vm, count: u8) -> Result<Vec<VcpuFd>, KvmError> {
        let mut target = kvm_vcpu_init::default();
        vm.fd()
            .get_preferred_target(&mut target)
            .map_err(KvmError::during("get the preferred kind of vCPU"))?;
        target.features[0] |= self.features;
        let vcpus = (0..count)
            .map(|id| self.create_vcpu(vm, id, target))
            .collect::<Result<_, _>>()?;
        gic::create(vm)?;
        Ok(vcpus)
    }

    fn create_vcpu(&self, vm: &Vm, id: u8, mut target: kvm_vcpu_init) -> Result<VcpuFd, KvmError> {
        let vcpu = vm
            .fd()
            .create_vcpu(u64::from(id))
            .map_err(KvmError::during("create a vCPU"))?;
        if id > 0 {
            target.features[0] |= 1 << KVM_ARM_VCPU_POWER_OFF;
        }
        vcpu.vcpu_init(&target)
            .map_err(KvmError::during("initialise a vCPU"))?;
        if self.sve {
            vcpu.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32))
                .map_err(KvmError::during("give a vCPU its vector registers"))?;
        }
        Ok(vcpu)
    }
}

/// How many bits the addresses below `end` have.
fn address_bits(end: u64) -> u8 {
    (u64::BITS - end.saturating_sub(1).leading_zeros()) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn processor(ipa_limit: Option<u8>) -> Processor {
        Processor {
            ipa_limit,
            features: 0,
            sve: false,
        }
    }

    #[test]
    fn a_vm_has_the_address_bits_that_it_needs() {
        let processor = processor(Some(40));
        assert_eq!(processor.vm_type(1 << 30), 32);
        assert_eq!(processor.vm_type(1 << 33), 33);
        assert_eq!(processor.vm_type((1 << 33) + 1), 34);
        assert_eq!(processor.phys_bits(), 40);
    }

    #[test]
    fn without_the_capability_there_is_one_type() {
        let processor = processor(None);
        assert_eq!(processor.vm_type(1 << 33), 0);
        assert_eq!(processor.phys_bits(), 40);
    }
}
