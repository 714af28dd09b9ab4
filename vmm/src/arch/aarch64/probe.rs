//! The smallest guest that proves that this KVM runs ordinary kernels: a device's register, memory, arithmetic, the
//! virtual counter, and PSCI to end it.

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use super::{Processor, registers};
use crate::kvm::{KvmError, Vm};
use crate::memory::layout::Region;

/// The guest's only memory.
pub const MEMORY: Region = Region {
    base: 1 << 30,
    length: 2 << 20,
};

const CODE: u64 = MEMORY.base;
const DATA: u64 = MEMORY.base + 0x1000;
/// Nothing is there.
const DEVICE: u64 = 0x0a00_0000;

const WRITTEN: u32 = 0x1234_5678;
const READ: u32 = 0x8765_4321;

/// x0 = DEVICE, x1 = DATA. Ends with PSCI SYSTEM_OFF if all went well, with SYSTEM_RESET if not (Arm DEN 0022 §5.1.9,
/// §5.1.11).
const PROGRAM: [u32; 19] = [
    0x528a_cf02, // mov  w2, #0x5678
    0x72a2_4682, // movk w2, #0x1234, lsl #16
    0xb900_0002, // str  w2, [x0]
    0xb940_0003, // ldr  w3, [x0]
    0xb900_0023, // str  w3, [x1]
    0xb940_0024, // ldr  w4, [x1]
    0x5288_6425, // mov  w5, #0x4321
    0x72b0_eca5, // movk w5, #0x8765, lsl #16
    0x6b05_009f, // cmp  w4, w5
    0x5400_00c1, // b.ne fail
    0xd53b_e046, // mrs  x6, cntvct_el0
    0x8b06_00c6, // add  x6, x6, x6
    0x5280_0100, // mov  w0, #0x0008
    0x72b0_8000, // movk w0, #0x8400, lsl #16
    0xd400_0002, // hvc  #0
    0x5280_0120, // fail: mov w0, #0x0009
    0x72b0_8000, // movk w0, #0x8400, lsl #16
    0xd400_0002, // hvc  #0
    0x1400_0000, // b    .
];

/// There is a /dev/kvm only where the processor has EL2 and the kernel was started in it.
pub fn missing_hardware() -> Option<&'static str> {
    None
}

/// Whether this machine may be slow. Nothing on aarch64 tells a guest that it is one.
pub fn is_guest() -> bool {
    true
}

/// Loads the guest into `vm`, whose memory is [`MEMORY`], with a vCPU about to run it.
///
/// # Errors
/// KVM refuses, or the host has no GICv3.
pub fn load(processor: &Processor, vm: &Vm) -> Result<VcpuFd, KvmError> {
    let mut vcpus = processor.create_vcpus(vm, 1)?;
    let vcpu = vcpus.pop().expect("one was asked for");
    let code: Vec<u8> = PROGRAM.iter().flat_map(|word| word.to_le_bytes()).collect();
    vm.ram()
        .write_slice(&code, GuestAddress(CODE))
        .expect("the program lies inside of MEMORY");
    registers::set(&vcpu, registers::PC, CODE)?;
    registers::set(&vcpu, registers::x(0), DEVICE)?;
    registers::set(&vcpu, registers::x(1), DATA)?;
    Ok(vcpu)
}

/// Plays the guest's devices and judges what it does.
#[derive(Debug, Default)]
pub struct Witness {
    device_written: bool,
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
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _) if self.device_written => {
                Some(Ok(()))
            }
            VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _) => {
                Some(Err("it computes wrongly".into()))
            }
            VcpuExit::Intr => None,
            other => Some(Err(format!("unexpected exit {other:?}"))),
        }
    }
}
