//! vCPUs in the state that the PVH protocol asks for: the first at the kernel's entry, the others waiting for INIT.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::cpuid;
use super::layout::{IDENTITY_MAP, START_INFO, TSS};
use crate::kvm::{KvmError, Vm};

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, default write-back: what firmware would have set.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// What this machine's processor and KVM offer a guest, asked once.
pub struct Processor {
    supported: CpuId,
}

impl Processor {
    /// Asks.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn of(kvm: &Kvm) -> Result<Self, KvmError> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(KvmError::during("get the supported CPUID"))?;
        Ok(Self { supported })
    }

    /// The number of guest-physical address bits that the guest's CPUs will have.
    pub fn phys_bits(&self) -> u8 {
        cpuid::phys_bits(self.supported.as_slice())
    }

    /// KVM's type of a VM with addresses up to `end`.
    pub fn vm_type(&self, _end: u64) -> u64 {
        0
    }

    /// Creates the interrupt controllers and all vCPUs.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn create_vcpus(&self, vm: &Vm, count: u8) -> Result<Vec<VcpuFd>, KvmError> {
        prepare(vm)?;
        let tsc_deadline = vm.fd().check_extension(Cap::TscDeadlineTimer);
        (0..count)
            .map(|id| {
                let vcpu = vm
                    .fd()
                    .create_vcpu(u64::from(id))
                    .map_err(KvmError::during("create a vCPU"))?;
                let entries = cpuid::for_vcpu(self.supported.as_slice(), id, count, tsc_deadline);
                set_cpuid(&vcpu, &entries)?;
                set_msrs(&vcpu)?;
                Ok(vcpu)
            })
            .collect()
    }

    /// A vCPU with all that is offered, in a VM without interrupt controllers.
    pub(super) fn create_bare_vcpu(&self, vm: &Vm) -> Result<VcpuFd, KvmError> {
        let vcpu = vm
            .fd()
            .create_vcpu(0)
            .map_err(KvmError::during("create a vCPU"))?;
        set_cpuid(&vcpu, self.supported.as_slice())?;
        Ok(vcpu)
    }
}

/// Creates PIC, IOAPIC and local APICs, and tells KVM which pages Intel processors without "unrestricted guest" borrow.
fn prepare(vm: &Vm) -> Result<(), KvmError> {
    vm.fd()
        .set_identity_map_address(IDENTITY_MAP)
        .map_err(KvmError::during("set the identity map address"))?;
    vm.fd()
        .set_tss_address(TSS as usize)
        .map_err(KvmError::during("set the TSS address"))?;
    vm.fd()
        .create_irq_chip()
        .map_err(KvmError::during("create the interrupt controllers"))
}

fn set_cpuid(vcpu: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<(), KvmError> {
    let cpuid = CpuId::from_entries(entries)
        .map_err(|_| KvmError::Lacks("room for the CPUID entries of this processor"))?;
    vcpu.set_cpuid2(&cpuid)
        .map_err(KvmError::during("set the CPUID of a vCPU"))
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = Msrs::from_entries(&[
        entry(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        entry(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK),
    ])
    .map_err(|_| KvmError::Lacks("room for two MSRs"))?;
    // KVM stops at the first MSR that it does not know; neither is needed to boot.
    vcpu.set_msrs(&msrs)
        .map(drop)
        .map_err(KvmError::during("set the MSRs of a vCPU"))
}

/// 32-bit protected mode, flat segments, paging off, rbx at the start info (Xen's docs/misc/pvh.pandoc).
pub(super) fn enter_at(vcpu: &VcpuFd, entry: u64) -> Result<(), KvmError> {
    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmError::during("read the registers of a vCPU"))?;
    let code = flat_segment(0x8, 0xb);
    let data = flat_segment(0x10, 0x3);
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        present: 1,
        selector: 0x18,
        ..Default::default()
    };
    sregs.cr0 = 0x11; // PE, ET
    sregs.cr4 = 0;
    sregs.efer = 0;
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::during("set the segment registers of a vCPU"))?;
    let regs = kvm_regs {
        rip: entry,
        rbx: START_INFO,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::during("set the registers of a vCPU"))
}

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}
