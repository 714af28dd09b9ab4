//! The smallest guest that proves that this KVM runs ordinary kernels: 64-bit mode, paging, `lock cmpxchg16b`, a
//! device's register and a port.

use std::fs;

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::Processor;
use crate::kvm::{KvmError, Vm};
use crate::memory::layout::Region;

/// The guest's only memory: one large page.
pub const MEMORY: Region = Region {
    base: 0,
    length: 2 << 20,
};

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const CODE: u64 = 0x4000;
const DATA: u64 = 0x5000;
/// The second large page, which has no memory behind it.
const DEVICE: u64 = 2 << 20;
const PORT: u16 = 0xe9;

const WRITTEN: u32 = 0x1234_5678;
const READ: u32 = 0x8765_4321;

/// rdi = DATA (zeroes), rsi = DEVICE.
const PROGRAM: [u8; 51] = [
    0x31, 0xc0, // xor eax, eax
    0x31, 0xd2, // xor edx, edx
    0xb9, 0x01, 0x00, 0x00, 0x00, // mov ecx, 1
    0xbb, 0x02, 0x00, 0x00, 0x00, // mov ebx, 2
    0xf0, 0x48, 0x0f, 0xc7, 0x0f, // lock cmpxchg16b [rdi]
    0x75, 0x19, // jnz fail
    0x83, 0x3f, 0x02, // cmp dword [rdi], 2
    0x75, 0x14, // jne fail
    0xc7, 0x06, 0x78, 0x56, 0x34, 0x12, // mov dword [rsi], WRITTEN
    0x8b, 0x06, // mov eax, [rsi]
    0x3d, 0x21, 0x43, 0x65, 0x87, // cmp eax, READ
    0x75, 0x05, // jne fail
    0xb0, b'k', // mov al, 'k'
    0xe6, PORT as u8, // out PORT, al
    0xf4,       // hlt
    0xb0, b'f', // fail: mov al, 'f'
    0xe6, PORT as u8, // out PORT, al
    0xf4,       // hlt
];

/// How one sees that the processor can't run guests although there is a /dev/kvm, if so.
pub fn missing_hardware() -> Option<&'static str> {
    (!has_cpu_flag(&["svm", "vmx"])).then_some("no svm or vmx in /proc/cpuinfo")
}

/// Whether this machine is itself a guest, and so may be slow.
pub fn is_guest() -> bool {
    has_cpu_flag(&["hypervisor"])
}

fn has_cpu_flag(wanted: &[&str]) -> bool {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .is_some_and(|(_, flags)| flags.split_whitespace().any(|flag| wanted.contains(&flag)))
}

/// Loads the guest into `vm`, whose memory is [`MEMORY`], with a vCPU about to run it.
///
/// # Errors
/// KVM refuses.
pub fn load(processor: &Processor, vm: &Vm) -> Result<VcpuFd, KvmError> {
    let vcpu = processor.create_bare_vcpu(vm)?;
    let present_writable = 0x3;
    let large = 0x80;
    let tables = [
        (PML4, PDPT | present_writable),
        (PDPT, PD | present_writable),
        (PD, present_writable | large),
        (PD + 8, DEVICE | present_writable | large),
    ];
    for (at, entry) in tables {
        vm.ram()
            .write_obj(entry, GuestAddress(at))
            .expect("the tables lie inside of MEMORY");
    }
    vm.ram()
        .write_slice(&PROGRAM, GuestAddress(CODE))
        .expect("the program lies inside of MEMORY");

    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmError::during("read the registers of a vCPU"))?;
    let data = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment {
        selector: 8,
        type_: 0xb,
        db: 0,
        l: 1,
        ..data
    };
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.cr3 = PML4;
    sregs.cr4 = 0x20; // PAE
    sregs.cr0 = 0x8000_0011; // PG, ET, PE
    sregs.efer = 0x500; // LMA, LME
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::during("set the segment registers of a vCPU"))?;
    let regs = kvm_regs {
        rip: CODE,
        rdi: DATA,
        rsi: DEVICE,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::during("set the registers of a vCPU"))?;
    Ok(vcpu)
}

/// Plays the guest's devices and judges what it does.
#[derive(Debug, Default)]
pub struct Witness {
    device_written: bool,
    says_ok: bool,
}

impl Witness {
    /// Serves an exit; the verdict when there is one.
    pub fn serve(&mut self, exit: VcpuExit<'_>) -> Option<Result<(), String>> {
        match exit {
            VcpuExit::MmioWrite(DEVICE, data) if data == WRITTEN.to_le_bytes() => {
                self.device_written = true;
                None
            }
            VcpuExit::MmioRead(DEVICE, data) if data.len() == 4 => {
                data.copy_from_slice(&READ.to_le_bytes());
                None
            }
            VcpuExit::IoOut(PORT, b"k") => {
                self.says_ok = true;
                None
            }
            VcpuExit::IoOut(PORT, b"f") => Some(Err("it computes wrongly".into())),
            VcpuExit::Hlt if self.says_ok && self.device_written => Some(Ok(())),
            VcpuExit::Intr => None,
            VcpuExit::InternalError => {
                Some(Err("KVM can't emulate one of its instructions".into()))
            }
            other => Some(Err(format!("unexpected exit {other:?}"))),
        }
    }
}
