//! Virtual CPUs: one thread each, which all start parked, and the handle by which the main thread moves them.
//!
//! ```text
//!            resume                 the guest ends, or stop
//! parked ───────────► running ───────────────────────────► gone
//!    ▲                   │                                   ▲
//!    └────── pause ──────┘                    stop (parked) ─┘
//! ```

pub mod exit;
pub mod gate;
pub mod kick;
pub mod run;

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use kvm_ioctls::VcpuFd;

use self::gate::{Gate, NotParked};
use self::kick::Kicker;
use self::run::VcpuThread;
use crate::ending::EndingSlot;
use crate::machine::board::Bus;

/// Stack of a vCPU thread: the exit path is shallow.
const STACK_BYTES: usize = 192 << 10;

/// All vCPU threads of a machine. Dropping it stops and joins them.
pub struct Vcpus {
    gate: Arc<Gate>,
    counters: Arc<exit::Counters>,
    threads: Vec<(Arc<Kicker>, Option<JoinHandle<()>>)>,
}

impl Vcpus {
    /// Starts a parked thread for each vCPU.
    ///
    /// # Errors
    /// A thread or the kick signal can't be had.
    pub fn spawn(fds: Vec<VcpuFd>, bus: &Arc<Bus>, ending: &Arc<EndingSlot>) -> io::Result<Self> {
        kick::install_handler()?;
        let mut vcpus = Self {
            gate: Arc::new(Gate::new(fds.len())),
            counters: Arc::default(),
            threads: Vec::with_capacity(fds.len()),
        };
        for (id, fd) in fds.into_iter().enumerate() {
            let kicker = Arc::new(Kicker::default());
            let thread = VcpuThread {
                id,
                fd,
                bus: bus.clone(),
                gate: vcpus.gate.clone(),
                counters: vcpus.counters.clone(),
                kicker: kicker.clone(),
                ending: ending.clone(),
            };
            let handle = Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(STACK_BYTES)
                .spawn(move || thread.run())?;
            vcpus.threads.push((kicker, Some(handle)));
        }
        Ok(vcpus)
    }

    /// Lets the guest run.
    pub fn resume(&self) {
        self.gate.resume();
    }

    /// Takes every vCPU out of the guest; returns when all have left it.
    ///
    /// # Errors
    /// A vCPU did not come back in time; then all run again.
    pub fn pause(&self) -> Result<(), NotParked> {
        self.gate.begin_pause();
        self.kick();
        let parked = self.gate.wait_parked();
        if parked.is_err() {
            self.gate.resume();
        }
        parked
    }

    /// Whether the vCPUs are parked, or on their way there.
    pub fn is_paused(&self) -> bool {
        self.gate.is_paused()
    }

    /// Exits so far.
    pub fn counters(&self) -> &exit::Counters {
        &self.counters
    }

    fn kick(&self) {
        for (kicker, _) in &self.threads {
            kicker.kick();
        }
    }
}

impl Drop for Vcpus {
    fn drop(&mut self) {
        self.gate.stop();
        self.kick();
        for (_, handle) in &mut self.threads {
            if let Some(handle) = handle.take() {
                // A vCPU thread that panicked has already said so on stderr; there is nothing more to do here.
                let _ = handle.join();
            }
        }
    }
}
