//! One container of a pod, from its streams to its exit status.

use std::{path::Path, sync::Arc};

use vmbox_protocol::agent::Stdio;

use super::{ContainerId, place::PodDir};
use crate::{
    guest::{Agent, AgentError, Exit},
    journal::{Journal, Record},
    stdio::{self, Direction, RawMode, Stream},
    user::{
        signals::{Signals, Wish},
        timing::Timing,
    },
};

/// Why a container did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The host's side of a stream.
    #[error("prepare the container's streams")]
    Streams(#[source] std::io::Error),
    /// The agent could not make it.
    #[error("create the container")]
    Create(#[source] AgentError),
    /// The agent could not start it.
    #[error("start the container")]
    Start(#[source] AgentError),
    /// It runs, but that could not be written down.
    #[error("write the journal")]
    Journal(#[source] std::io::Error),
    /// The guest ended before the container did.
    #[error("wait for the container")]
    Wait(#[source] AgentError),
    /// It ran, but not all that it wrote reached our standard output and error.
    #[error("write the container's output")]
    Output(#[source] std::io::Error),
    /// The user gave up before it was started, or after it had ended and while its output was being handed on.
    #[error("interrupted by signal {0}")]
    Interrupted(u32),
}

/// Which streams a container has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attachment {
    /// Our standard input is the container's.
    pub stdin: bool,
    /// The container has a terminal.
    pub terminal: bool,
}

/// A container about to run.
#[derive(Clone)]
pub struct Launch<'a> {
    /// Its pod.
    pub dir: &'a PodDir,
    /// Its name.
    pub id: &'a ContainerId,
    /// Its OCI spec, paths as the guest sees them.
    pub spec: &'a [u8],
    /// Its streams.
    pub attachment: Attachment,
    /// A debug hook: this signal crashes the agent instead of reaching the container.
    pub crash_on: Option<u32>,
    /// Where what its streams need is written down before it is made.
    pub journal: &'a Journal,
    /// Called when its process runs.
    pub started: &'a dyn Fn() -> std::io::Result<()>,
    /// Where phases are noted.
    pub timing: &'a Arc<Timing>,
}

struct Streams {
    stdin: Option<Stream>,
    outputs: Vec<Stream>,
    stdio: Stdio,
}

/// Runs a container until its process has ended and all of its output has been handed on.
///
/// # Errors
/// It could not be made or started, the guest ended first, or some of its output was lost.
pub async fn run(
    agent: &Agent,
    launch: &Launch<'_>,
    signals: &mut Signals,
) -> Result<Exit, ContainerError> {
    let streams = listen(launch).map_err(ContainerError::Streams)?;
    // Before the container can print anything.
    let _raw = if launch.attachment.terminal && launch.attachment.stdin {
        RawMode::enter().map_err(ContainerError::Streams)?
    } else {
        None
    };
    agent
        .create(
            launch.id,
            launch.spec.to_vec(),
            streams.stdio.clone(),
            false,
        )
        .await
        .map_err(ContainerError::Create)?;
    launch.timing.mark("container created");
    agent
        .start(launch.id)
        .await
        .map_err(ContainerError::Start)?;
    launch.timing.mark("container started");
    (launch.started)().map_err(ContainerError::Journal)?;
    let exit = wait(agent, launch, signals)
        .await
        .map_err(ContainerError::Wait);
    // Said at once: whatever fails from here on, this stays true.
    if matches!(
        exit,
        Ok(Exit {
            oom_killed: true,
            ..
        })
    ) {
        tracing::warn!("the container ran out of memory, and a process of it was killed");
    }
    let handed_on = hand_on(streams.outputs, launch.crash_on, signals).await;
    // The thread that reads our standard input ends with us: exit never waits for input.
    drop(streams.stdin);
    launch.timing.mark("exit");
    let exit = exit?;
    handed_on?;
    Ok(exit)
}

/// Waits for what is left of the output. Its reader may never take it: a signal gives it up.
async fn hand_on(
    outputs: Vec<Stream>,
    crash_on: Option<u32>,
    signals: &mut Signals,
) -> Result<(), ContainerError> {
    let drained = async {
        let mut handed_on = Ok(());
        for output in outputs {
            handed_on = handed_on.and(output.drained().await);
        }
        handed_on.map_err(ContainerError::Output)
    };
    tokio::pin!(drained);
    loop {
        tokio::select! {
            result = &mut drained => return result,
            wish = signals.next() => match wish {
                // There is no process any more that could have it.
                Wish::Forward(signal) if crash_on != Some(signal) => {
                    return Err(ContainerError::Interrupted(signal));
                }
                Wish::Forward(_) | Wish::Resize => {}
            },
        }
    }
}

fn listen(launch: &Launch<'_>) -> std::io::Result<Streams> {
    let Attachment { stdin, terminal } = launch.attachment;
    let announce = |path: &Path| launch.journal.record(&Record::Socket { path: path.into() });
    let listen = |wanted: bool, direction| {
        wanted
            .then(|| Stream::listen(launch.dir, direction, &announce, launch.timing))
            .transpose()
    };
    let stdin = listen(stdin, Direction::Stdin)?;
    let stdout = listen(true, Direction::Stdout)?;
    let stderr = listen(!terminal, Direction::Stderr)?;
    let port = |stream: &Option<Stream>| stream.as_ref().map_or(0, Stream::port);
    let (columns, rows) = stdio::size_of().filter(|_| terminal).unwrap_or((0, 0));
    let stdio = Stdio {
        terminal,
        stdin_port: port(&stdin),
        stdout_port: port(&stdout),
        stderr_port: port(&stderr),
        columns,
        rows,
        ..Default::default()
    };
    Ok(Streams {
        stdin,
        outputs: [stdout, stderr].into_iter().flatten().collect(),
        stdio,
    })
}

async fn wait(
    agent: &Agent,
    launch: &Launch<'_>,
    signals: &mut Signals,
) -> Result<Exit, AgentError> {
    let waiting = agent.wait(launch.id);
    tokio::pin!(waiting);
    loop {
        let wish = tokio::select! {
            exit = &mut waiting => return exit,
            wish = signals.next() => wish,
        };
        match wish {
            Wish::Forward(signal) if launch.crash_on == Some(signal) => agent.debug_crash().await,
            // Refused if the process has just ended: its exit is on the way.
            Wish::Forward(signal) => drop(agent.signal(launch.id, signal).await),
            Wish::Resize if launch.attachment.terminal => resize(agent, launch.id).await,
            Wish::Resize => {}
        }
    }
}

async fn resize(agent: &Agent, id: &ContainerId) {
    if let Some((columns, rows)) = stdio::size_of() {
        drop(agent.resize(id, columns, rows).await);
    }
}

/// The exit code for a container that could not be started, as Docker's: 127 no such command, 126 it can't be
/// executed, 125 all else.
pub fn exit_code_of_refusal(error: &ContainerError) -> u8 {
    let (ContainerError::Create(AgentError::Refused { code, .. })
    | ContainerError::Start(AgentError::Refused { code, .. })) = error
    else {
        return match error {
            ContainerError::Interrupted(signal) => {
                128u8.saturating_add(u8::try_from(*signal).unwrap_or(0))
            }
            _ => 125,
        };
    };
    match code {
        ttrpc::Code::NOT_FOUND => 127,
        ttrpc::Code::PERMISSION_DENIED => 126,
        _ => 125,
    }
}

/// Writes the guest's spec as JSON.
///
/// # Errors
/// Not with a spec that was parsed.
pub fn spec_bytes(spec: &oci_spec::runtime::Spec) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(spec)
}

/// Whether a path can be a Unix socket's: 107 bytes and a port's digits.
pub fn fits_a_socket(dir: &Path) -> bool {
    dir.as_os_str().len() + "/vsock_4294967295".len() < 108
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ttrpc::Code) -> ContainerError {
        ContainerError::Start(AgentError::Refused {
            code,
            message: String::new(),
        })
    }

    #[test]
    fn refusals_have_dockers_codes() {
        assert_eq!(exit_code_of_refusal(&refused(ttrpc::Code::NOT_FOUND)), 127);
        assert_eq!(
            exit_code_of_refusal(&refused(ttrpc::Code::PERMISSION_DENIED)),
            126
        );
        assert_eq!(exit_code_of_refusal(&refused(ttrpc::Code::INTERNAL)), 125);
        assert_eq!(exit_code_of_refusal(&ContainerError::Interrupted(2)), 130);
        let full = ContainerError::Output(std::io::ErrorKind::StorageFull.into());
        assert_eq!(exit_code_of_refusal(&full), 125);
    }
}
