//! What to do with each exit of a vCPU: serve it and go on, or end the VM.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;

use crate::machine::board::{Bus, PortWrite};

/// How a guest ended of its own accord, as far as KVM can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEnd {
    /// It asked for a reset or power-off.
    Reset,
    /// It shut down without warning, or KVM could not go on; what is known of the cause.
    Crashed(String),
}

/// Counts exits, of all vCPUs.
#[derive(Debug, Default)]
pub struct Counters {
    /// All exits.
    pub exits: AtomicU64,
    /// Of these, for memory-mapped registers.
    pub mmio: AtomicU64,
    /// Of these, for I/O ports.
    pub pio: AtomicU64,
}

/// Serves one exit. `Some` ends the VM.
pub fn serve(exit: VcpuExit<'_>, bus: &Bus, counters: &Counters) -> Option<GuestEnd> {
    counters.exits.fetch_add(1, Ordering::Relaxed);
    match exit {
        VcpuExit::MmioRead(address, data) => {
            counters.mmio.fetch_add(1, Ordering::Relaxed);
            bus.read(address, data);
            None
        }
        VcpuExit::MmioWrite(address, data) => {
            counters.mmio.fetch_add(1, Ordering::Relaxed);
            bus.write(address, data);
            None
        }
        VcpuExit::IoIn(port, data) => {
            counters.pio.fetch_add(1, Ordering::Relaxed);
            bus.legacy().read_port(port, data);
            None
        }
        VcpuExit::IoOut(port, data) => {
            counters.pio.fetch_add(1, Ordering::Relaxed);
            match bus.legacy().write_port(port, data) {
                PortWrite::Done => None,
                PortWrite::Reset => Some(GuestEnd::Reset),
            }
        }
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt => None,
        VcpuExit::Shutdown => Some(GuestEnd::Crashed("triple fault".into())),
        VcpuExit::SystemEvent(kind, _) => Some(system_event(kind)),
        VcpuExit::FailEntry(reason, cpu) => Some(GuestEnd::Crashed(format!(
            "the processor refused to enter the guest (hardware reason {reason:#x} on CPU {cpu})"
        ))),
        VcpuExit::InternalError => Some(GuestEnd::Crashed(
            "KVM could not go on (internal error: an instruction that it can't emulate)".into(),
        )),
        VcpuExit::MemoryFault { gpa, .. } => Some(GuestEnd::Crashed(format!(
            "the guest touched memory at {gpa:#x} that nothing backs"
        ))),
        other => Some(GuestEnd::Crashed(format!("unexpected exit {other:?}"))),
    }
}

fn system_event(kind: u32) -> GuestEnd {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN | kvm_bindings::KVM_SYSTEM_EVENT_RESET => {
            GuestEnd::Reset
        }
        kind => GuestEnd::Crashed(format!("system event {kind}")),
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};

    use super::*;

    #[test]
    fn power_off_and_reset_end_the_vm_in_order_and_other_events_do_not() {
        assert_eq!(system_event(KVM_SYSTEM_EVENT_SHUTDOWN), GuestEnd::Reset);
        assert_eq!(system_event(KVM_SYSTEM_EVENT_RESET), GuestEnd::Reset);
        let crash = system_event(KVM_SYSTEM_EVENT_CRASH);
        assert!(matches!(crash, GuestEnd::Crashed(_)));
    }
}
