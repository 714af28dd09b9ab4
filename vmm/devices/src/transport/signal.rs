//! The one interrupt line of an MMIO device and the registers that say what it meant (virtio 1.2 §4.2.2).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::device::Interrupt;

/// InterruptStatus bit 0: a used buffer notification.
const USED_BUFFER: u32 = 1;
/// InterruptStatus bit 1: a configuration change notification.
const CONFIGURATION: u32 = 2;
/// What a driver can make the device say in the host's log: a few mistakes, each told twice (handler and worker).
const WARNINGS: u32 = 16;

/// Shared by the transport (vCPU threads) and the handler (its worker): atomics only, so nobody waits.
pub(super) struct Signal {
    pending: AtomicU32,
    generation: AtomicU32,
    live: AtomicBool,
    needs_reset: AtomicBool,
    warnings_left: AtomicU32,
    irq: EventFd,
}

impl Signal {
    pub(super) fn new(irq: EventFd) -> Self {
        Self {
            pending: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            live: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            warnings_left: AtomicU32::new(WARNINGS),
            irq,
        }
    }

    /// InterruptStatus.
    pub(super) fn pending(&self) -> u32 {
        self.pending.load(Ordering::SeqCst)
    }

    /// InterruptACK.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.pending.fetch_and(!bits, Ordering::SeqCst);
    }

    /// ConfigGeneration.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether the device has asked to be reset.
    pub(super) fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// From here on the driver wants interrupts (§3.1.1: none before DRIVER_OK).
    pub(super) fn go_live(&self) {
        self.live.store(true, Ordering::SeqCst);
    }

    /// Back to the state after power-on, except for the generation, which only ever grows, and the warnings, which
    /// only ever shrink.
    pub(super) fn reset(&self) {
        self.live.store(false, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.pending.store(0, Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        if !self.live.load(Ordering::SeqCst) {
            return;
        }
        self.pending.fetch_or(bit, Ordering::SeqCst);
        // Always signalled, even if the bit was pending: a driver may acknowledge after it has looked at its
        // rings (§4.2.2.2), so a suppressed edge would be a lost one.
        match self.irq.write(1) {
            Ok(()) => {}
            // The counter is full: the interrupt is as pending as it can be.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => tracing::error!(error = %e, "can't raise an interrupt"),
        }
    }
}

impl Interrupt for Signal {
    fn signal_queue(&self, _index: u16) {
        self.raise(USED_BUFFER);
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIGURATION);
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
        self.raise(CONFIGURATION);
    }

    fn may_warn(&self) -> bool {
        let left = |left: u32| left.checked_sub(1);
        self.warnings_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, left)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[test]
    fn warnings_run_out_and_a_reset_brings_none_back() {
        let signal = Signal::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let granted = (0..2 * WARNINGS).filter(|_| signal.may_warn()).count();
        assert_eq!(granted, WARNINGS as usize);
        signal.reset();
        assert!(!signal.may_warn());
    }
}
