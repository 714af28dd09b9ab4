//! The services of agent.proto: each translates a request, calls the domain, and translates the answer.

mod containers;
mod figures;
mod pod;
mod processes;

use std::collections::HashMap;
use std::sync::Arc;

use nix::errno::Errno;
use ttrpc::{Code, get_status};
use vmbox_protocol::agent::Stdio;
use vmbox_protocol::agent_ttrpc::{create_containers, create_pod, create_processes};

use crate::container::{Connection, ContainerError};
use crate::executor::FailureKind;
use crate::pod::Pod;
use crate::stdio::Ports;

/// All services of a pod.
pub fn services(pod: &Arc<Pod>) -> [HashMap<String, ttrpc::r#async::Service>; 3] {
    [
        create_pod(Arc::new(pod::PodService(pod.clone()))),
        create_containers(Arc::new(containers::ContainersService(pod.clone()))),
        create_processes(Arc::new(processes::ProcessesService(pod.clone()))),
    ]
}

fn connection(stdio: Option<&Stdio>) -> Connection {
    stdio.map_or_else(Connection::default, |s| Connection {
        terminal: s.terminal,
        ports: Ports {
            stdin: s.stdin_port,
            stdout: s.stdout_port,
            stderr: s.stderr_port,
            keeper: s.keeper_port,
        },
        columns: s.columns,
        rows: s.rows,
        plain_newlines: s.plain_newlines,
    })
}

fn status(error: ContainerError) -> ttrpc::Error {
    refusal(code(&error), error)
}

fn refusal(code: Code, message: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, message))
}

fn code(error: &ContainerError) -> Code {
    match error {
        ContainerError::Spec(_) | ContainerError::Limit(_) | ContainerError::NoRoot(_) => {
            Code::INVALID_ARGUMENT
        }
        ContainerError::Unknown(_) | ContainerError::NoProcess { .. } => Code::NOT_FOUND,
        ContainerError::Exists(_) | ContainerError::ProcessExists { .. } => Code::ALREADY_EXISTS,
        ContainerError::State { .. } | ContainerError::NoTerminal(_) => Code::FAILED_PRECONDITION,
        ContainerError::Signal {
            source: Errno::EINVAL,
            ..
        } => Code::INVALID_ARGUMENT,
        ContainerError::Signal {
            source: Errno::ESRCH,
            ..
        } => Code::FAILED_PRECONDITION,
        ContainerError::Signal { .. } | ContainerError::Io { .. } => Code::INTERNAL,
        ContainerError::Executor(failure) => match failure.kind {
            FailureKind::NotFound => Code::NOT_FOUND,
            FailureKind::PermissionDenied => Code::PERMISSION_DENIED,
            FailureKind::Other => Code::INTERNAL,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::Failure;

    #[test]
    fn exit_codes_of_engines_can_be_told_from_the_status() {
        let of = |kind| {
            code(&ContainerError::Executor(Failure {
                kind,
                message: String::new(),
            }))
        };
        assert_eq!(of(FailureKind::NotFound), Code::NOT_FOUND);
        assert_eq!(of(FailureKind::PermissionDenied), Code::PERMISSION_DENIED);
        assert_eq!(of(FailureKind::Other), Code::INTERNAL);
    }
}
