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

use rustix::{fs::MemfdFlags, io::FdFlags, pipe::PipeFlags};
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
    kill: Option<tokio::sync::oneshot::Sender<()>>,
    _lifeline: OwnedFd,
}

impl Monitor {
    /// Starts `program` with `config`. Its standard error goes to `log`. Must be called in a runtime, on its one thread.
    ///
    /// # Errors
    /// No descriptors, or the program can't be executed. What the monitor itself finds wrong comes by [`Self::ended`].
    pub fn launch(
        program: &Path,
        mut config: VmConfig,
        log: &Path,
        timing: &Arc<Timing>,
    ) -> Result<Self, LaunchError> {
        let (events, event_fd) = pipe()?;
        let (lifeline_fd, lifeline) = pipe()?;
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
        let (kill, killed) = tokio::sync::oneshot::channel();
        let (end_sender, end) = watch::channel(None);
        let events = tokio::net::unix::pipe::Receiver::from_owned_fd(events)?;
        let timing = Arc::clone(timing);
        let log = log.to_owned();
        tokio::spawn(async move {
            let end = watch_child(child, events, killed, &timing, &log).await;
            let _ = end_sender.send(Some(end));
        });
        Ok(Self {
            pid,
            end,
            kill: Some(kill),
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
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
        self.ended().await
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
    killed: tokio::sync::oneshot::Receiver<()>,
    timing: &Timing,
    log: &Path,
) -> End {
    let mut killer = Box::pin(killed);
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
            // An error means that the handle was dropped: the same as a kill.
            _ = &mut killer, if !asked_to_die => {
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
    exit.unwrap_or_else(|| unexplained(status, log))
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
    fn one_that_does_not_end_is_killed() {
        let (end, _) = end_of("exec sleep 1000");
        assert!(end.message.contains("signal: 9"), "{}", end.message);
    }
}
