//! The loop of a vCPU thread: ask the gate, enter the guest, serve the exit.

use std::sync::Arc;

use kvm_ioctls::VcpuFd;

use super::exit::{self, Counters, GuestEnd};
use super::gate::{Admission, Gate};
use super::kick::Kicker;
use crate::ending::{Ending, EndingSlot};
use crate::machine::board::Bus;

/// What a vCPU thread owns and shares.
pub struct VcpuThread {
    pub(super) id: usize,
    pub(super) fd: VcpuFd,
    pub(super) bus: Arc<Bus>,
    pub(super) gate: Arc<Gate>,
    pub(super) counters: Arc<Counters>,
    pub(super) kicker: Arc<Kicker>,
    pub(super) ending: Arc<EndingSlot>,
}

impl VcpuThread {
    /// Runs until the guest ends or the gate says stop.
    pub fn run(mut self) {
        let kicker = self.kicker.clone();
        let _registered = kicker.register(&mut self.fd);
        while self.gate.admit() == Admission::Run {
            if let Some(end) = self.enter() {
                self.ending.propose(Ending::of_guest(self.id, end));
                self.gate.gone();
                return;
            }
        }
    }

    fn enter(&mut self) -> Option<GuestEnd> {
        match self.fd.run() {
            Ok(exit) => exit::serve(exit, &self.bus, &self.counters),
            Err(errno) => match errno.errno() {
                libc::EINTR => {
                    self.kicker.clear();
                    None
                }
                // The vCPU waits for its INIT; KVM asks to try again.
                libc::EAGAIN => None,
                _ => Some(GuestEnd::Crashed(format!("KVM_RUN failed: {errno}"))),
            },
        }
    }
}
