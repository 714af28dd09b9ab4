//! A running `vmbox-vmm`: started with its configuration on a memfd, watched through its event pipe, tied to us by a
//! lifeline.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{CWD, FileType, MemfdFlags, Mode, OFlags},
    io::FdFlags,
    pipe::PipeFlags,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};
use vmbox_config::{Event, ExitReason, VmConfig};

use crate::user::timing::Timing;

/// Why the monitor could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A pipe or memory file could not be made.
    #[error("prepare the monitor's descriptors")]
    Descriptors(#[from] io::Error),
    /// The program could not be executed.
    #[error("execute {program}")]
    Execute {
        /// Its path.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The configuration can't be written.
    #[error("write the VM's configuration")]
    Config(#[from] serde_json::Error),
}

/// How a VM ended.
#[derive(Debug, Clone)]
pub struct End {
    /// The reason that the monitor gave; `None` if it could give none, because it was killed or crashed.
    pub reason: Option<ExitReason>,
    /// One line: the cause.
    pub message: String,
    /// The guest's last lines.
    pub guest_log: Vec<String>,
}

/// A running monitor. Dropping it ends the VM (the lifeline closes, and the process is killed).
#[derive(Debug)]
pub struct Monitor {
    pid: u32,
    end: watch::Receiver<Option<End>>,
    order: Option<tokio::sync::oneshot::Sender<Order>>,
    _lifeline: OwnedFd,
}

/// What its watcher is to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Kill,
    Release,
}

/// A pipe whose end is the VM's: it ends when nobody holds the writing end any more.
#[derive(Debug)]
pub struct Lifeline {
    read: OwnedFd,
    write: OwnedFd,
}

impl Lifeline {
    /// One that only we hold.
    ///
    /// # Errors
    /// As pipe(2) says.
    pub fn pipe() -> io::Result<Self> {
        let (read, write) = pipe()?;
        Ok(Self { read, write })
    }

    /// One with a name, which others can [hold](hold_lifeline) too.
    ///
    /// # Errors
    /// As mkfifo(3) and open(2) say.
    pub fn named(path: &Path) -> io::Result<Self> {
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(CWD, path, FileType::Fifo, mode, 0)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let read = rustix::fs::open(path, flags, Mode::empty())?;
        let write = hold_lifeline(path)?;
        Ok(Self { read, write })
    }
}

/// Keeps the VM of a named [`Lifeline`] running for as long as what is returned is open.
///
/// # Errors
/// `ENXIO`: the VM has ended.
pub fn hold_lifeline(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Monitor {
    /// Starts `program` with `config`. Its standard error goes to `log`. Must be called in a runtime, on its one thread.
    ///
    /// # Errors
    /// No descriptors, or the program can't be executed. What the monitor itself finds wrong comes by [`Self::ended`].
    pub fn launch(
        program: &Path,
        config: VmConfig,
        log: &Path,
        timing: &Arc<Timing>,
    ) -> Result<Self, LaunchError> {
        Self::launch_on(Lifeline::pipe()?, program, config, log, timing)
    }

    /// As [`Self::launch`], for a VM that lives on this lifeline.
    ///
    /// # Errors
    /// As [`Self::launch`].
    pub fn launch_on(
        lifeline: Lifeline,
        program: &Path,
        mut config: VmConfig,
        log: &Path,
        timing: &Arc<Timing>,
    ) -> Result<Self, LaunchError> {
        let (events, event_fd) = pipe()?;
        let Lifeline {
            read: lifeline_fd,
            write: lifeline,
        } = lifeline;
        config.event_fd = Some(event_fd.as_raw_fd());
        config.lifeline_fd = Some(lifeline_fd.as_raw_fd());
        let config_fd = memory_file(&serde_json::to_vec(&config)?)?;
        let inherited = [&event_fd, &lifeline_fd, &config_fd];
        // Nothing else is executed between here and the spawn: this is the only thread.
        inherited
            .iter()
            .try_for_each(|fd| rustix::io::fcntl_setfd(fd, FdFlags::empty()))
            .map_err(io::Error::from)?;
        let child = Command::new(program)
            .arg("--config-fd")
            .arg(config_fd.as_raw_fd().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(log)?)
            .current_dir("/")
            // Out of reach of the terminal's Ctrl-C, which is the container's.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| LaunchError::Execute {
                program: program.display().to_string(),
                source,
            })?;
        let pid = child.id().unwrap_or_default();
        let (order, ordered) = tokio::sync::oneshot::channel();
        let (end_sender, end) = watch::channel(None);
        let events = tokio::net::unix::pipe::Receiver::from_owned_fd(events)?;
        let timing = Arc::clone(timing);
        let log = log.to_owned();
        tokio::spawn(async move {
            if let Some(end) = watch_child(child, events, ordered, &timing, &log).await {
                let _ = end_sender.send(Some(end));
            }
        });
        Ok(Self {
            pid,
            end,
            order: Some(order),
            _lifeline: lifeline,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A handle that resolves when the VM has ended and the process is gone.
    pub fn ended(&self) -> impl Future<Output = End> + use<> {
        let mut end = self.end.clone();
        async move {
            match end.wait_for(Option::is_some).await {
                Ok(end) => end.clone().unwrap_or_else(lost),
                Err(_) => lost(),
            }
        }
    }

    /// Waits for the VM to end by itself, kills it after `patience`.
    pub async fn finish(mut self, patience: Duration) -> End {
        let ended = self.ended();
        if let Ok(end) = tokio::time::timeout(patience, ended).await {
            return end;
        }
        if let Some(order) = self.order.take() {
            let _ = order.send(Order::Kill);
        }
        self.ended().await
    }

    /// Lets go of it: the VM lives on for as long as others hold its lifeline.
    pub async fn release(mut self) {
        if let Some(order) = self.order.take() {
            let _ = order.send(Order::Release);
        }
        // Never an end: the watcher leaves, and that is what is waited for.
        let _ = self.end.changed().await;
    }
}

fn lost() -> End {
    End {
        reason: None,
        message: "the monitor is no longer watched".into(),
        guest_log: Vec::new(),
    }
}

async fn watch_child(
    mut child: Child,
    events: tokio::net::unix::pipe::Receiver,
    ordered: tokio::sync::oneshot::Receiver<Order>,
    timing: &Timing,
    log: &Path,
) -> Option<End> {
    let mut orders = Box::pin(ordered);
    let mut lines = BufReader::new(events).lines();
    let mut exit = None;
    let mut asked_to_die = false;
    loop {
        tokio::select! {
            line = lines.next_line() => match line {
                Ok(Some(line)) => match serde_json::from_str(&line) {
                    Ok(Event::Phase { phase, at_ns }) => timing.phase(phase, at_ns),
                    Ok(Event::Exit { reason, message, guest_log }) => {
                        exit = Some(End { reason: Some(reason), message, guest_log });
                    }
                    Err(error) => tracing::warn!(%line, %error, "the monitor reported something unknown"),
                },
                Ok(None) | Err(_) => break,
            },
            order = &mut orders, if !asked_to_die => {
                if order == Ok(Order::Release) {
                    // Its destructor would kill it.
                    std::mem::forget(child);
                    return None;
                }
                // An error means that the handle was dropped: the same as a kill.
                asked_to_die = true;
                let _ = child.start_kill();
            }
        }
    }
    if !asked_to_die {
        // The event pipe ends with the process; one that closes it and lives on is killed.
        let wait = tokio::time::timeout(Duration::from_secs(2), child.wait()).await;
        if wait.is_err() {
            let _ = child.start_kill();
        }
    }
    let status = child.wait().await;
    Some(exit.unwrap_or_else(|| unexplained(status, log)))
}

fn unexplained(status: io::Result<ExitStatus>, log: &Path) -> End {
    let how = match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    let said = std::fs::read(log).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    let message = match last {
        Some(last) => format!("the monitor ended without a word ({how}): {}", last.trim()),
        None => format!("the monitor ended without a word ({how})"),
    };
    End {
        reason: None,
        message,
        guest_log: Vec::new(),
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?)
}

fn memory_file(content: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek, Write};
    let mut file = File::from(rustix::fs::memfd_create("vm-config", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config() -> VmConfig {
        serde_json::from_str(r#"{"vcpus":1,"memory_mib":64,"kernel":"/k"}"#).unwrap()
    }

    /// Runs a shell script in the monitor's place.
    fn end_of(script: &str) -> (End, Arc<Timing>) {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let timing = Arc::new(Timing::start());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let end = runtime.block_on(async {
            let monitor =
                Monitor::launch(&program, config(), &dir.path().join("log"), &timing).unwrap();
            monitor.finish(Duration::from_secs(3)).await
        });
        (end, timing)
    }

    /// Finds the event descriptor in the configuration, as the monitor does.
    const EVENT_FD: &str = r#"fd=$(sed 's/.*"event_fd":\([0-9]*\).*/\1/' <"/proc/self/fd/$2"); emit() { echo "$1" >"/proc/self/fd/$fd"; }"#;

    #[test]
    fn its_last_word_is_how_it_ended() {
        let exit = r#"emit '{"event":"exit","reason":"guest_panic","message":"the guest kernel panicked","guest_log":["x"]}'; exit 10"#;
        let (end, _) = end_of(&format!("{EVENT_FD}\n{exit}"));
        assert_eq!(end.reason, Some(ExitReason::GuestPanic), "{}", end.message);
        assert_eq!(end.guest_log, ["x"]);
    }

    #[test]
    fn a_silent_death_quotes_its_standard_error() {
        let (end, _) = end_of("echo 'out of cheese' >&2; exit 6");
        assert_eq!(end.reason, None);
        assert!(end.message.contains("out of cheese"), "{}", end.message);
    }

    #[test]
    fn a_named_lifeline_ends_with_its_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lifeline");
        let Lifeline { read, write } = Lifeline::named(&path).unwrap();
        let another = hold_lifeline(&path).unwrap();
        drop(write);
        let end_of_file = || rustix::io::read(&read, &mut [0; 1]);
        assert_eq!(end_of_file(), Err(rustix::io::Errno::AGAIN));
        drop(another);
        assert_eq!(end_of_file(), Ok(0));
        drop(read);
        let refused = hold_lifeline(&path).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::ENXIO));
    }

    #[test]
    fn a_released_one_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("vmm");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let timing = Arc::new(Timing::start());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let pid = runtime.block_on(async {
            let monitor =
                Monitor::launch(&program, config(), &dir.path().join("log"), &timing).unwrap();
            let pid = monitor.pid();
            monitor.release().await;
            pid
        });
        drop(runtime);
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
        let gone = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
        assert!(gone.unwrap().is_none());
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
    }

    #[test]
    fn one_that_does_not_end_is_killed() {
        let (end, _) = end_of("exec sleep 1000");
        assert!(end.message.contains("signal: 9"), "{}", end.message);
    }
}
