//! Makes containers and processes in a process of their own: namespaces and fork need a single-threaded one, the agent isn't.
//!
//! ```text
//! agent                                  executor (this binary, argv[1] = "executor", its stdin is the channel)
//!   Request + stdin, stdout, stderr ──►    create: youki's libcontainer     exec: our own (exec.rs says why)
//!                                            └─ clone: the process, which becomes the agent's child when the executor ends
//!   ◄── Started { pid } (+ terminal)       ends
//!   ◄── Failed { kind, message }         from whichever of the two failed, the first one counts
//!   ◄── end of file                      the process has called execve: every copy of the channel is close-on-exec
//! ```
//! The executor is never waited for: the reaper collects it, the channel says everything.

mod causes;
mod channel;
pub mod child;
pub mod confine;
mod create;
mod exec;
pub mod hook;
pub mod inside;
mod scheduling;
mod seccomp;
mod start_hooks;
mod touches;
mod workload;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use channel::Channel;

use crate::stdio::TerminalMode;

/// argv[1] of an executor.
pub const ARGUMENT: &str = "executor";
/// libcontainer's state, a directory per container.
pub const STATE: &str = "/run/vmbox/containers";

/// What an executor is asked for. Large things are in files, as a message must fit a socket buffer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A container whose `config.json` is in `bundle`, with its init waiting.
    Create {
        id: String,
        bundle: String,
        terminal: bool,
        read_only_dev: bool,
    },
    /// A process in a container: `process` is the file with its JSON, `bundle` the container's.
    Exec {
        init_pid: u32,
        bundle: String,
        process: String,
        cgroup: String,
        /// Below `cgroup`, `/` being that one; else where its init is will do.
        place: Option<String>,
        /// None for three streams.
        terminal: Option<TerminalMode>,
        owner_uid: u32,
    },
}

/// What an executor, or the process that it made, reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Report {
    Started {
        pid: u32,
    },
    /// Carries the terminal's other end as a file descriptor.
    Terminal,
    /// A detail of a failure that may follow; the first is the innermost.
    Cause(String),
    Failed(Failure),
}

/// Why a process could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// For the exit code that the user sees.
    pub kind: FailureKind,
    /// One line that names the cause.
    pub message: String,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// The program does not exist (127).
    NotFound,
    /// The program can't be executed (126).
    PermissionDenied,
    /// Anything else.
    Other,
}

impl Failure {
    fn other(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Other,
            message: message.into(),
        }
    }

    /// The innermost cause in the place of libcontainer's text around it; what we say ourselves stands.
    fn because(self, cause: Option<String>) -> Self {
        match (self.kind, cause) {
            (FailureKind::Other, Some(cause)) => Self::other(cause),
            _ => self,
        }
    }

    fn of(step: &str, error: impl std::fmt::Display) -> Self {
        Self::other(format!("{step}: {error}"))
    }
}

/// A process that was made.
#[derive(Debug)]
pub struct Made {
    /// Process id in the guest's root PID namespace. The agent is, or is about to be, its parent.
    pub pid: u32,
    /// The agent's end of its terminal, if it has one.
    pub terminal: Option<OwnedFd>,
    /// For a created container: tells what becomes of its execve.
    pub launch: Launch,
}

/// The rest of the channel to a process that has not called execve yet.
#[derive(Debug)]
pub struct Launch {
    channel: Channel,
}

impl Launch {
    /// Blocks until the process has called execve, has failed to, or is gone.
    ///
    /// # Errors
    /// Why it could not be executed.
    pub fn wait(self) -> Result<(), Failure> {
        self.wait_with_terminal(None).map(drop)
    }

    /// The same for an exec, whose terminal may be reported before or after its pid.
    ///
    /// # Errors
    /// Why it could not be executed.
    pub fn wait_with_terminal(
        self,
        mut terminal: Option<OwnedFd>,
    ) -> Result<Option<OwnedFd>, Failure> {
        let mut cause = None;
        loop {
            match self.channel.receive() {
                // Only who fails says a cause: then it has ended without calling execve.
                Ok(None) => {
                    return cause.map_or(Ok(terminal), |cause| Err(Failure::other(cause)));
                }
                Ok(Some((Report::Failed(failure), _))) => return Err(failure),
                Ok(Some((Report::Terminal, fd))) => terminal = fd,
                Ok(Some((Report::Cause(text), _))) => cause = cause.or(Some(text)),
                Ok(Some((Report::Started { .. }, _))) => {}
                Err(error) => return Err(Failure::of("executor", error)),
            }
        }
    }
}

/// Starts an executor and blocks until it reports. `stdio` is empty for a terminal, else stdin, stdout, stderr.
///
/// # Errors
/// What failed, with a line that names the cause.
pub fn run(request: &Request, stdio: &[OwnedFd]) -> Result<Made, Failure> {
    let channel = spawn().map_err(|error| Failure::of("start the executor", error))?;
    let fds: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
    channel
        .send(request, &fds)
        .map_err(|error| Failure::of("executor", error))?;
    let mut terminal = None;
    let mut cause = None;
    loop {
        match channel.receive() {
            Ok(Some((Report::Started { pid }, _))) => {
                return Ok(Made {
                    pid,
                    terminal,
                    launch: Launch { channel },
                });
            }
            Ok(Some((Report::Terminal, fd))) => terminal = fd,
            Ok(Some((Report::Cause(text), _))) => cause = cause.or(Some(text)),
            Ok(Some((Report::Failed(failure), _))) => {
                let failure = failure.because(cause);
                // To the end, so that nothing of the failed attempt is alive when this is answered.
                let _ = Launch { channel }.wait();
                return Err(failure);
            }
            Ok(None) => return Err(Failure::other("the executor ended without a report")),
            Err(error) => return Err(Failure::of("executor", error)),
        }
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    let bytes = fs::read(path).map_err(|e| Failure::of(&path.display().to_string(), e))?;
    serde_json::from_slice(&bytes).map_err(|e| Failure::of(&path.display().to_string(), e))
}

fn spawn() -> std::io::Result<Channel> {
    let (ours, theirs) = Channel::pair()?;
    // posix_spawn inside: no copy of a multi-threaded process runs our code. The handle is dropped, never waited for.
    let child = Command::new("/proc/self/exe")
        .arg(ARGUMENT)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    drop(child);
    Ok(ours)
}
