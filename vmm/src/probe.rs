//! Can this machine run guests? Tells apart why not, by looking and by running a tiny guest against a deadline.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use kvm_ioctls::VcpuFd;

use crate::arch::Processor;
use crate::arch::probe::{self as guest, Witness};
use crate::kvm::{self, KvmError, Vm};
use crate::memory::ram;
use crate::vcpu::kick::{self, Kicker};

/// Hardware takes microseconds for it.
const DEADLINE: Duration = Duration::from_secs(2);
/// A machine that is a guest itself, or emulated.
const DEADLINE_NESTED: Duration = Duration::from_secs(20);

/// Why this machine can't run guests, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// /dev/kvm is missing, forbidden, busy or too old.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// /dev/kvm opens, but the processor has no virtualization for it to use.
    #[error(
        "/dev/kvm opens, but this machine's processor has no hardware virtualization ({0}), so ordinary guests can't run: switch it on in the firmware, or for this virtual machine (nested virtualization), or use another machine"
    )]
    NoHardware(&'static str),
    /// The probe guest did the wrong thing.
    #[error(
        "/dev/kvm opens, but a probe guest failed: {0}; this KVM can't run ordinary guests, use another machine"
    )]
    GuestFailed(String),
    /// The probe guest did not finish.
    #[error(
        "/dev/kvm opens, but a probe guest of twenty instructions did not finish within {} s; this KVM is too slow to use",
        .0.as_secs()
    )]
    TooSlow(Duration),
    /// The host lacks memory or threads.
    #[error("the probe could not be made: {0}")]
    Host(#[source] io::Error),
}

/// Looks and tries. Takes milliseconds where guests can run, at most 20 s where they can't.
///
/// # Errors
/// See [`ProbeError`].
pub fn probe() -> Result<(), ProbeError> {
    let kvm = kvm::open()?;
    if let Some(sign) = guest::missing_hardware() {
        return Err(ProbeError::NoHardware(sign));
    }
    run_guest(&kvm)
}

fn run_guest(kvm: &kvm_ioctls::Kvm) -> Result<(), ProbeError> {
    let ram = ram::allocate(&[guest::MEMORY]).map_err(|e| ProbeError::Host(io::Error::other(e)))?;
    let processor = Processor::of(kvm)?;
    let vm = Vm::new(kvm, processor.vm_type(guest::MEMORY.end()), ram)?;
    let vcpu = guest::load(&processor, &vm)?;
    kick::install_handler().map_err(ProbeError::Host)?;
    let kicker = Arc::new(Kicker::default());
    let deadline = if guest::is_guest() {
        DEADLINE_NESTED
    } else {
        DEADLINE
    };

    let (verdict_sender, verdict) = channel();
    let thread_kicker = kicker.clone();
    let thread = Builder::new()
        .name("probe".into())
        .spawn(move || {
            // The receiver is there until this thread is joined.
            let _ = verdict_sender.send(run_vcpu(vcpu, &thread_kicker));
        })
        .map_err(ProbeError::Host)?;
    let outcome = match verdict.recv_timeout(deadline) {
        Ok(verdict) => verdict.map_err(ProbeError::GuestFailed),
        Err(RecvTimeoutError::Timeout) => Err(ProbeError::TooSlow(deadline)),
        Err(RecvTimeoutError::Disconnected) => {
            Err(ProbeError::GuestFailed("its thread died".into()))
        }
    };
    // Without effect if it has finished; then it ends as "interrupted".
    kicker.kick();
    let _ = thread.join();
    outcome
}

fn run_vcpu(mut vcpu: VcpuFd, kicker: &Kicker) -> Result<(), String> {
    let _registered = kicker.register(&mut vcpu);
    let mut witness = Witness::default();
    loop {
        match vcpu.run() {
            Ok(exit) => {
                if let Some(verdict) = witness.serve(exit) {
                    return verdict;
                }
            }
            Err(errno) if errno.errno() == libc::EAGAIN => {}
            Err(errno) => return Err(format!("KVM_RUN failed: {errno}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_guest_runs_where_there_is_hardware() {
        match (kvm::open(), guest::missing_hardware()) {
            (Ok(kvm), None) => run_guest(&kvm).unwrap(),
            (Ok(_), Some(sign)) => println!("skipped: {sign}"),
            (Err(error), _) => println!("skipped: {error}"),
        }
    }

    #[test]
    fn a_machine_without_hardware_virtualization_is_told_so() {
        match (kvm::open().is_ok(), guest::missing_hardware()) {
            (true, Some(_)) => assert!(matches!(probe(), Err(ProbeError::NoHardware(_)))),
            _ => println!("skipped: needs a /dev/kvm without hardware behind it"),
        }
    }
}
