//! Calls to the agent, with errors that say what failed instead of what ttrpc is.

use std::{path::Path, time::Duration};

use ttrpc::{Code, asynchronous::Client, context};
use vmbox_protocol::{
    agent::{
        ContainerRequest, CreateRequest, DeleteRequest, Empty, ProcessRequest, ResizeRequest,
        SetupRequest, Share, SignalRequest, Stdio,
    },
    agent_ttrpc::{ContainersClient, PodClient, ProcessesClient},
};

use crate::pod::{ContainerId, design::SHARE_TAG, fill_random};

/// A call that should be over in an instant may take this long on a machine that is very busy.
const CALL: Duration = Duration::from_secs(60);

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent refused; its own words.
    #[error("{message}")]
    Refused {
        /// The kind of refusal.
        code: Code,
        /// One line.
        message: String,
    },
    /// The connection ended: the guest is gone.
    #[error("the guest is gone")]
    Gone,
}

impl From<ttrpc::Error> for AgentError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::Refused {
                code: status.code(),
                message: status.message,
            },
            _ => Self::Gone,
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + the signal.
    pub status: u8,
    /// Its container ran out of memory.
    pub oom_killed: bool,
}

/// A pod's agent.
#[derive(Clone)]
pub struct Agent {
    client: Client,
    pod: PodClient,
    containers: ContainersClient,
    processes: ProcessesClient,
}

impl Agent {
    /// Speaks over `client`.
    pub fn new(client: Client) -> Self {
        Self {
            pod: PodClient::new(client.clone()),
            containers: ContainersClient::new(client.clone()),
            processes: ProcessesClient::new(client.clone()),
            client,
        }
    }

    /// Connects to the relay of another pod's owner.
    ///
    /// # Errors
    /// No owner listens there.
    pub async fn connect(relay: &Path) -> Result<Self, AgentError> {
        let client = Client::connect(&format!("unix://{}", relay.display()))
            .await
            .map_err(|_| AgentError::Gone)?;
        Ok(Self::new(client))
    }

    /// The connection, for the relay.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Clock, entropy, host name, and the pod's share: before anything else.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn setup(&self, hostname: &str, dax: bool) -> Result<(), AgentError> {
        let mut entropy = vec![0; 64];
        fill_random(&mut entropy);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let request = SetupRequest {
            hostname: hostname.to_owned(),
            time_unix_ns: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            entropy,
            shares: vec![Share {
                tag: SHARE_TAG.into(),
                dax,
                ..Default::default()
            }],
            ..Default::default()
        };
        self.pod
            .setup(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Makes a container whose init process waits for [`Self::start`].
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn create(
        &self,
        id: &ContainerId,
        spec: Vec<u8>,
        stdio: Stdio,
    ) -> Result<(), AgentError> {
        let request = CreateRequest {
            id: id.to_string(),
            spec,
            stdio: Some(stdio).into(),
            ..Default::default()
        };
        self.containers
            .create(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Lets the init process go.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn start(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.containers
            .start(context::with_duration(CALL), &container(id))
            .await?;
        Ok(())
    }

    /// Waits, however long, until the init process has ended and its streams too.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn wait(&self, id: &ContainerId) -> Result<Exit, AgentError> {
        let request = ProcessRequest {
            id: id.to_string(),
            ..Default::default()
        };
        let answer = self
            .processes
            .wait(context::with_timeout(0), &request)
            .await?;
        Ok(Exit {
            status: u8::try_from(answer.status).unwrap_or(u8::MAX),
            oom_killed: answer.oom_killed,
        })
    }

    /// Signals the init process.
    ///
    /// # Errors
    /// The agent refused (it has ended, say), or is gone.
    pub async fn signal(&self, id: &ContainerId, signal: u32) -> Result<(), AgentError> {
        let request = SignalRequest {
            id: id.to_string(),
            signal,
            ..Default::default()
        };
        self.processes
            .signal(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Tells the init process its terminal's size.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn resize(
        &self,
        id: &ContainerId,
        columns: u32,
        rows: u32,
    ) -> Result<(), AgentError> {
        let request = ResizeRequest {
            id: id.to_string(),
            columns,
            rows,
            ..Default::default()
        };
        self.processes
            .resize(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Removes a container, killing what is left of it.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn delete(&self, id: &str) -> Result<(), AgentError> {
        let request = DeleteRequest {
            id: id.to_owned(),
            force: true,
            ..Default::default()
        };
        self.containers
            .delete(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Kills the agent, and with it the guest, if the pod was started for debugging.
    pub async fn debug_crash(&self) {
        if let Err(AgentError::Refused { message, .. }) = self
            .pod
            .debug_crash(context::with_duration(CALL), &Empty::new())
            .await
            .map_err(AgentError::from)
        {
            tracing::warn!(message, "the agent refuses to crash");
        }
    }

    /// Ends the guest; its VM ends soon after.
    ///
    /// # Errors
    /// The agent refused. That it is gone is not an error.
    pub async fn shutdown(&self, patience: Duration) -> Result<(), AgentError> {
        match self
            .pod
            .shutdown(context::with_duration(patience), &Empty::new())
            .await
            .map_err(AgentError::from)
        {
            Ok(_) | Err(AgentError::Gone) => Ok(()),
            Err(refused) => Err(refused),
        }
    }
}

fn container(id: &ContainerId) -> ContainerRequest {
    ContainerRequest {
        id: id.to_string(),
        ..Default::default()
    }
}

/// Removes a container through a pod's relay, from a program without a runtime. Best effort: the pod may be ending.
pub fn delete_container(relay: &Path, id: &str) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    else {
        return;
    };
    runtime.block_on(async {
        let delete = async { Agent::connect(relay).await?.delete(id).await };
        if let Ok(Err(error)) = tokio::time::timeout(Duration::from_secs(2), delete).await {
            tracing::debug!(%error, "the container was not there to be deleted");
        }
    });
}
