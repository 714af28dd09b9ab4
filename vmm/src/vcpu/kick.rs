//! Takes a vCPU thread out of the guest: `immediate_exit` for the next KVM_RUN, a signal for the one at work.
//!
//! Setting the flag first closes the race: a thread about to enter sees it, one inside is interrupted, and one in
//! between leaves because of the pending signal. So the signal's handler has nothing to do.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// A vCPU thread that can be kicked while it is registered; of nobody yet by default.
#[derive(Default)]
pub struct Kicker {
    target: Mutex<Option<Target>>,
}

struct Target {
    immediate_exit: *const AtomicU8,
    thread: libc::pthread_t,
}

// SAFETY: the pointer leads into the kvm_run mapping, which is valid in every thread, and is only used under the
// mutex between `register` and `unregister`, through an atomic.
unsafe impl Send for Target {}

impl Kicker {
    /// Kicks go to the calling thread, which runs `fd`, until the returned guard is dropped.
    pub fn register<'a>(&'a self, fd: &mut VcpuFd) -> Registered<'a> {
        let immediate_exit = (&raw mut fd.get_kvm_run().immediate_exit).cast::<AtomicU8>();
        // SAFETY: pthread_self has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        *self.lock() = Some(Target {
            immediate_exit,
            thread,
        });
        Registered(self)
    }

    /// Makes the vCPU's current or next KVM_RUN return EINTR.
    pub fn kick(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: registered, so the kvm_run mapping is alive; u8 and AtomicU8 have the same layout, and the vCPU
            // thread touches this byte only through `clear`, likewise atomically.
            let immediate_exit = unsafe { &*target.immediate_exit };
            immediate_exit.store(1, Ordering::SeqCst);
            // SAFETY: registered, so the thread has not ended; the signal has a handler since `install_handler`.
            let _ = unsafe { libc::pthread_kill(target.thread, SIGRTMIN()) };
        }
    }

    /// Takes a kick back after it has worked; called by the vCPU thread before it asks the gate again.
    pub fn clear(&self) {
        if let Some(target) = &*self.lock() {
            // SAFETY: as in `kick`.
            let immediate_exit = unsafe { &*target.immediate_exit };
            immediate_exit.store(0, Ordering::SeqCst);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Target>> {
        self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends the registration when dropped, which must be before the vCPU descriptor is.
pub struct Registered<'a>(&'a Kicker);

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// Gives the kick signal a handler, so that it interrupts and does not kill.
///
/// # Errors
/// sigaction fails.
pub fn install_handler() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).map_err(io::Error::from)
}
