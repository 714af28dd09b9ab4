//! The names by which KVM knows a vCPU's registers (Documentation/virt/kvm/api.rst §4.68), and reading and writing them.

use std::mem::offset_of;

use kvm_bindings::{
    KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_U64, kvm_regs, user_pt_regs,
};
use kvm_ioctls::VcpuFd;

use crate::kvm::KvmError;

/// The program counter.
pub const PC: u64 = core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc));
/// The multiprocessor affinity register: which processor this is.
pub const MPIDR_EL1: u64 = system(3, 0, 0, 0, 5);
/// Memory features.
pub const ID_AA64MMFR0_EL1: u64 = system(3, 0, 0, 7, 0);

/// General-purpose register `index`.
pub const fn x(index: usize) -> u64 {
    core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs) + 8 * index)
}

const fn core(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset as u64 / 4)
}

const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    KVM_REG_ARM64
        | KVM_REG_SIZE_U64
        | KVM_REG_ARM64_SYSREG as u64
        | op0 << 14
        | op1 << 11
        | crn << 7
        | crm << 3
        | op2
}

/// Reads one.
///
/// # Errors
/// KVM refuses.
pub fn get(vcpu: &VcpuFd, register: u64) -> Result<u64, KvmError> {
    let mut bytes = [0; 8];
    vcpu.get_one_reg(register, &mut bytes)
        .map_err(KvmError::during("read a register of a vCPU"))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes one.
///
/// # Errors
/// KVM refuses.
pub fn set(vcpu: &VcpuFd, register: u64, value: u64) -> Result<(), KvmError> {
    vcpu.set_one_reg(register, &value.to_le_bytes())
        .map(drop)
        .map_err(KvmError::during("set a register of a vCPU"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_api_document() {
        assert_eq!(PC, 0x6030_0000_0010_0040);
        assert_eq!(x(0), 0x6030_0000_0010_0000);
        assert_eq!(x(3), 0x6030_0000_0010_0006);
        assert_eq!(MPIDR_EL1, 0x6030_0000_0013_c005);
    }
}
