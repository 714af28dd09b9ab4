//! The monitor's life: boot, the main loop, the ending.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::{Mode, umask};
use vmbox_config::{Control, ExitReason, Phase, Reply, VmConfig};

use crate::control::ControlSocket;
use crate::ending::Ending;
use crate::event::{Wake, Wakes};
use crate::inherited::adopt;
use crate::machine::Machine;
use crate::machine::assemble::assemble;
use crate::ramoops::Remains;
use crate::report::{Reporter, monotonic_ns};

/// Boots `config` and lives until its guest ends, reporting on the way. `started_ns` is when `main` was entered.
/// Returns the process's exit status.
pub fn run(config: &VmConfig, started_ns: u64) -> u8 {
    // Before all that can fail: without it nobody hears of the failure.
    let (events, refused) = match take("event_fd", config.event_fd) {
        Ok(events) => (events, None),
        Err(ending) => (None, Some(ending)),
    };
    let mut reporter = Reporter::new(events);
    reporter.phase_at(Phase::MonitorStarted, started_ns);
    let lifeline = match refused {
        Some(ending) => Err(ending),
        None => take_lifeline(config),
    };
    let reason = match lifeline {
        Ok(lifeline) => live(config, lifeline, &mut reporter, started_ns),
        Err(ending) => {
            reporter.exit(&ending, Vec::new());
            ending.reason
        }
    };
    reason.status()
}

fn take_lifeline(config: &VmConfig) -> Result<Option<OwnedFd>, Ending> {
    if config.event_fd.is_some() && config.event_fd == config.lifeline_fd {
        return Err(Ending::new(
            ExitReason::BadConfig,
            "configuration: event_fd and lifeline_fd are the same",
        ));
    }
    take("lifeline_fd", config.lifeline_fd)
}

fn take(name: &str, fd: Option<i32>) -> Result<Option<OwnedFd>, Ending> {
    fd.map(adopt).transpose().map_err(|error| {
        Ending::new(
            ExitReason::BadConfig,
            format!("configuration: {name} can't be used: {error}"),
        )
    })
}

/// From nothing to the ending, which is reported with the guest's last words.
fn live(
    config: &VmConfig,
    lifeline: Option<OwnedFd>,
    reporter: &mut Reporter,
    started_ns: u64,
) -> ExitReason {
    let mut monitor = match Monitor::start(config, lifeline, started_ns) {
        Ok(monitor) => monitor,
        Err(ending) => {
            reporter.exit(&ending, Vec::new());
            return ending.reason;
        }
    };
    reporter.phase(Phase::KvmReady);
    reporter.phase(Phase::KernelEntry);
    monitor.machine.resume();
    let ending = monitor.until_the_end();
    monitor.machine.halt();
    let remains = monitor.machine.remains();
    let ending = judge(ending, &remains);
    // Before the monitor is dropped: that waits for devices, which may be busy on a slow disk.
    reporter.exit(&ending, remains.log);
    ending.reason
}

/// A reset may have been the last act of a panic; only the guest's log tells.
fn judge(ending: Ending, remains: &Remains) -> Ending {
    match (&remains.panic, ending.reason) {
        (Some(why), ExitReason::Ended) => Ending::new(
            ExitReason::GuestPanic,
            format!("the guest kernel panicked: {why}; its last log lines are in the exit event"),
        ),
        _ => ending,
    }
}

struct Monitor {
    machine: Machine,
    wakes: Wakes,
    signals: Option<SignalFd>,
    lifeline: Option<OwnedFd>,
    control: Option<ControlSocket>,
    started_ns: u64,
}

impl Monitor {
    fn start(
        config: &VmConfig,
        lifeline: Option<OwnedFd>,
        started_ns: u64,
    ) -> Result<Self, Ending> {
        let host = |what: &'static str| {
            move |error: std::io::Error| {
                Ending::new(ExitReason::HostFailure, format!("{what}: {error}"))
            }
        };
        let signals =
            take_signals(lifeline.is_some()).map_err(|e| host("take over signals")(e.into()))?;
        // Sockets and the serial log are for their owner only. A share makes this 0 again: what is made in it on behalf
        // of the guest has had the guest's umask applied already.
        umask(Mode::S_IRWXG | Mode::S_IRWXO);
        let control = config
            .control
            .as_deref()
            .map(ControlSocket::bind)
            .transpose()
            .map_err(host("listen on the control socket"))?;
        let machine = assemble(config).map_err(|error| error.ending())?;

        let wakes = Wakes::new().map_err(host("wait for events"))?;
        let mut fds = vec![(machine.ending().wake().as_raw_fd(), Wake::Ending)];
        fds.extend(signals.as_ref().map(|fd| (fd.as_raw_fd(), Wake::Signal)));
        fds.extend(lifeline.as_ref().map(|fd| (fd.as_raw_fd(), Wake::Lifeline)));
        let extra = machine.extra();
        fds.extend(extra.map(|extra| (extra.changed().as_raw_fd(), Wake::Memory)));
        fds.extend(
            control
                .as_ref()
                .map(|socket| (socket.listener_fd(), Wake::ControlListener)),
        );
        for (fd, wake) in fds {
            wakes.add(fd, wake).map_err(host("wait for events"))?;
        }
        Ok(Self {
            machine,
            wakes,
            signals,
            lifeline,
            control,
            started_ns,
        })
    }

    fn until_the_end(&mut self) -> Ending {
        loop {
            let woken = match self.wakes.wait() {
                Ok(woken) => woken,
                Err(error) => {
                    return Ending::new(
                        ExitReason::HostFailure,
                        format!("wait for events: {error}"),
                    );
                }
            };
            for wake in woken {
                if let Some(ending) = self.handle(wake) {
                    return ending;
                }
            }
        }
    }

    fn handle(&mut self, wake: Wake) -> Option<Ending> {
        match wake {
            Wake::Ending => self.machine.ending().take(),
            Wake::Signal => self.signal(),
            Wake::Lifeline => self.lifeline_moved(),
            Wake::ControlListener => {
                if let Some(control) = &mut self.control {
                    control.accept(&self.wakes);
                }
                None
            }
            Wake::Memory => {
                if self.machine.extra_has_changed()
                    && let Some(control) = &mut self.control
                {
                    control.settle(&Reply::Ok);
                }
                None
            }
            Wake::ControlClient(number) => self.control(number),
        }
    }

    fn signal(&mut self) -> Option<Ending> {
        let signal = self.signals.as_ref()?.read_signal().ok()??;
        let name = Signal::try_from(signal.ssi_signo as i32).map_or("a signal", Signal::as_str);
        Some(Ending::new(ExitReason::Ended, format!("stopped by {name}")))
    }

    /// What is written to the lifeline is not for us; its end is.
    fn lifeline_moved(&mut self) -> Option<Ending> {
        let mut buffer = [0; 64];
        match nix::unistd::read(self.lifeline.as_ref()?, &mut buffer) {
            Ok(0) => Some(Ending::new(
                ExitReason::Orphaned,
                "the owner is gone (its end of the lifeline closed); stopped",
            )),
            Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => None,
            Err(error) => Some(Ending::new(
                ExitReason::Orphaned,
                format!("the lifeline broke: {error}; stopped"),
            )),
        }
    }

    fn control(&mut self, number: u32) -> Option<Ending> {
        let mut stopped = false;
        let (machine, started_ns) = (&mut self.machine, self.started_ns);
        if let Some(control) = &mut self.control {
            control.serve(number, &mut |request, descriptor| {
                stopped |= request == Control::Stop;
                answer(machine, &request, descriptor, started_ns)
            });
        }
        stopped.then(|| Ending::new(ExitReason::Ended, "stopped through the control socket"))
    }
}

fn answer(
    machine: &mut Machine,
    request: &Control,
    descriptor: Option<OwnedFd>,
    started_ns: u64,
) -> Option<Reply> {
    Some(match request {
        Control::Pause => reply_to(machine.pause()),
        Control::Resume => {
            machine.resume();
            Reply::Ok
        }
        Control::Stop => Reply::Ok,
        Control::Stats => {
            let mut stats = machine.stats();
            stats.uptime_us = monotonic_ns().saturating_sub(started_ns) / 1000;
            Reply::Stats(stats)
        }
        Control::Balloon { target_mib } if machine.set_balloon(*target_mib) => Reply::Ok,
        Control::Balloon { .. } => Reply::Error {
            message: "this VM has no balloon".into(),
        },
        Control::Memory { extra_mib } => match machine.set_extra_memory(*extra_mib) {
            Ok(()) if !machine.extra_has_changed() => return None,
            result => reply_to(result),
        },
        Control::AttachNic { slot } => reply_to(machine.nics().attach(*slot, descriptor)),
        Control::DetachNic { slot } => reply_to(machine.nics().detach(*slot)),
    })
}

fn reply_to(result: Result<(), impl std::error::Error>) -> Reply {
    match result {
        Ok(()) => Reply::Ok,
        Err(error) => Reply::Error {
            message: error.to_string(),
        },
    }
}

/// Signals that ask us to stop arrive through a descriptor, in no thread's middle. With an owner at the other end of a
/// lifeline they do not arrive at all: a terminal's ^C goes to the owner too, and what becomes of the VM is the
/// owner's to decide.
fn take_signals(owned: bool) -> nix::Result<Option<SignalFd>> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    if owned {
        return Ok(None);
    }
    SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC).map(Some)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_lifeline_that_is_not_open_is_told_to_the_owner() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut config: VmConfig =
            serde_json::from_str(r#"{"kernel":"k","vcpus":1,"memory_mib":64}"#).unwrap();
        config.event_fd = Some(OwnedFd::from(writer).into_raw_fd());
        config.lifeline_fd = Some(i32::MAX);
        assert_eq!(run(&config, 0), ExitReason::BadConfig.status());
        let mut events = String::new();
        reader.read_to_string(&mut events).unwrap();
        let last = events.lines().last().unwrap();
        assert!(last.contains("lifeline_fd can't be used"), "{last}");
    }

    #[test]
    fn a_signal_stops_a_monitor_only_if_nobody_owns_it() {
        let signals = take_signals(false).unwrap().unwrap();
        nix::sys::signal::raise(Signal::SIGTERM).unwrap();
        let received = signals.read_signal().unwrap().unwrap();
        assert_eq!(received.ssi_signo, Signal::SIGTERM as u32);
        assert!(take_signals(true).unwrap().is_none());
        // Would end this process if it arrived.
        nix::sys::signal::raise(Signal::SIGINT).unwrap();
    }

    fn remains(panic: Option<&str>) -> Remains {
        Remains {
            panic: panic.map(str::to_owned),
            log: Vec::new(),
        }
    }

    #[test]
    fn a_reset_after_a_panic_record_is_a_panic() {
        let reset = Ending::new(ExitReason::Ended, "the guest ended");
        assert_eq!(
            judge(reset.clone(), &remains(Some("oops"))).reason,
            ExitReason::GuestPanic
        );
        assert_eq!(judge(reset, &remains(None)).reason, ExitReason::Ended);
    }

    #[test]
    fn a_crash_stays_a_crash() {
        let crash = Ending::new(ExitReason::TripleFault, "x");
        assert_eq!(
            judge(crash, &remains(Some("oops"))).reason,
            ExitReason::TripleFault
        );
    }
}
