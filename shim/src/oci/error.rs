//! Why a verb failed: runc's own words where engines read them, and exit codes.

use std::{io, path::PathBuf};

use ttrpc::Code;

use super::systemd::{SystemdError, UnitError};
use crate::{
    guest::{AgentError, GreetingError},
    journal::UndoError,
    network::NetworkError,
    pod::{design::DesignError, owner::PodError, place::PlaceError},
    user::PlanError,
    vm::{AssetError, ControlError, LaunchError},
};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// No such container, or none any more.
    #[error("container does not exist")]
    NotExist,
    /// The id is taken.
    #[error("container with given ID already exists")]
    Exists,
    /// Not an id.
    #[error("invalid container ID format")]
    InvalidId,
    /// It has ended.
    #[error("container not running")]
    NotRunning,
    /// It has not been paused.
    #[error("container not paused")]
    NotPaused,
    /// Started twice.
    #[error("cannot start an already running container")]
    AlreadyRunning,
    /// Started after its end.
    #[error("cannot start a container that has stopped")]
    StartStopped,
    /// Deleted while it runs.
    #[error("cannot delete container {id} that is not stopped: {status}")]
    NotStopped {
        /// Which.
        id: String,
        /// Its status.
        status: &'static str,
    },
    /// A process was to be added to one that has ended.
    #[error("cannot exec in a stopped container")]
    ExecStopped,
    /// A process was to be added to one that stands still.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    ExecPaused,
    /// A terminal without anybody to have it.
    #[error("cannot allocate tty if vmbox will detach without setting console socket")]
    NoConsole,
    /// Nobody will have that terminal.
    #[error("cannot use console socket if vmbox will not detach or allocate tty")]
    UselessConsole,
    /// An option that can't be had in a guest.
    #[error("{0}")]
    Refused(String),
    /// A file or system call of the host failed.
    #[error("{what}")]
    Host {
        /// What was attempted.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The monitor could not do something.
    #[error("change the VM's memory")]
    Monitor(#[from] ControlError),
    /// A cgroup that systemd can't make.
    #[error(transparent)]
    CgroupsPath(#[from] UnitError),
    /// systemd does not make or end a container's unit.
    #[error("{what} systemd's unit {unit}")]
    Unit {
        /// What was attempted.
        what: &'static str,
        /// Its name.
        unit: String,
        /// Why it failed.
        source: SystemdError,
    },
    /// JSON that can't be read.
    #[error("{path}: {source}")]
    Json {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The container's program can't be executed, in the words that engines look for.
    #[error("unable to start container process: {0}")]
    Program(String),
    /// A hook failed.
    #[error("error running {kind} hook #{index}: {why}")]
    Hook {
        /// Its list.
        kind: &'static str,
        /// Its place in the list, from 0.
        index: usize,
        /// What happened.
        why: String,
    },
    /// The agent refused.
    #[error("{0}")]
    Agent(&'static str, #[source] AgentError),
    /// The pod's agent can't be reached.
    #[error("reach the pod's agent")]
    Greeting(#[from] GreetingError),
    /// The keeper said nothing.
    #[error("the container's keeper did not start")]
    Keeper,
    /// The bundle.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The spec.
    #[error(transparent)]
    Design(#[from] DesignError),
    /// A file of the VM is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// A network that a VM can't have.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Mounts.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// The pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// The monitor.
    #[error("start the monitor")]
    Launch(#[from] LaunchError),
    /// What is left can't be removed.
    #[error(transparent)]
    Undo(#[from] UndoError),
}

impl OciError {
    /// For `map_err`: an I/O error with what was attempted.
    pub fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Host { what, source }
    }

    /// What the agent said about a program that it could not execute, as runc says it.
    pub fn of_program(step: &'static str, error: AgentError, program: &str) -> Self {
        let AgentError::Refused { code, message } = &error else {
            return Self::Agent(step, error);
        };
        match code {
            Code::NOT_FOUND if program.contains('/') => Self::Program(format!(
                "exec: {program:?}: stat {program}: no such file or directory"
            )),
            Code::NOT_FOUND => Self::Program(format!(
                "exec: {program:?}: executable file not found in $PATH"
            )),
            Code::PERMISSION_DENIED => {
                Self::Program(format!("exec: {program:?}: permission denied: {message}"))
            }
            _ => Self::Agent(step, error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: Code, program: &str) -> String {
        let refusal = AgentError::Refused {
            code,
            message: "no".into(),
        };
        OciError::of_program("start", refusal, program).to_string()
    }

    #[test]
    fn engines_find_the_words_they_look_for() {
        assert!(said(Code::NOT_FOUND, "x").contains("executable file not found in $PATH"));
        assert!(said(Code::NOT_FOUND, "/x").contains("no such file or directory"));
        assert!(said(Code::PERMISSION_DENIED, "/x").contains("permission denied"));
    }
}
