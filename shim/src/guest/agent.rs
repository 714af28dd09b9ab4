//! Calls to the agent, with errors that say what failed instead of what ttrpc is.

use std::{path::Path, time::Duration};

use ttrpc::{Code, asynchronous::Client, context};
use vmbox_protocol::{
    agent::{
        ContainerRequest, CreateRequest, DeleteRequest, Empty, NetworkRequest, ProcessRequest,
        ResizeRequest, SetupRequest, Share, SignalRequest, Stdio,
    },
    agent_ttrpc::{ContainersClient, PodClient, ProcessesClient},
};

use super::dial;
use crate::pod::{ContainerId, design::SHARE_TAG, fill_random};

/// A call that should be over in an instant may take this long on a machine that is very busy: fifty guests that start at
/// once on one emulated processor take minutes.
pub(crate) const CALL: Duration = Duration::from_secs(300);

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
    /// It could not be asked, or did not answer.
    #[error("{0}")]
    Unasked(String),
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
            ttrpc::Error::Others(words) if words == DEADLINE => Self::Unasked(format!(
                "the agent did not answer within {} s",
                CALL.as_secs()
            )),
            _ => Self::Gone,
        }
    }
}

/// What ttrpc says of a call that took longer than it may.
const DEADLINE: &str = "Request deadline elapsed";

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
    pub(super) pod: PodClient,
    pub(super) containers: ContainersClient,
    pub(super) processes: ProcessesClient,
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
        self.set_up(hostname, dax, false).await
    }

    /// As [`Self::setup`], for a guest that is to outlive this connection.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn setup_lasting(&self, hostname: &str) -> Result<(), AgentError> {
        self.set_up(hostname, false, true).await
    }

    async fn set_up(&self, hostname: &str, dax: bool, lasting: bool) -> Result<(), AgentError> {
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
            lasting,
            ..Default::default()
        };
        self.pod
            .setup(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Makes the guest's interfaces these, and no others.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn set_network(&self, request: &NetworkRequest) -> Result<(), AgentError> {
        self.pod
            .set_network(context::with_duration(CALL), request)
            .await?;
        Ok(())
    }

    /// Makes a container whose init process waits for [`Self::start`], or `rests` until something needs it; its process id in
    /// the guest, 0 for none so far.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn create(
        &self,
        id: &ContainerId,
        spec: Vec<u8>,
        stdio: Stdio,
        rests: bool,
    ) -> Result<u32, AgentError> {
        let request = CreateRequest {
            id: id.to_string(),
            spec,
            stdio: Some(stdio).into(),
            rests,
            ..Default::default()
        };
        let answer = self
            .containers
            .create(context::with_duration(CALL), &request)
            .await?;
        Ok(answer.pid)
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

    /// Kills every container and writes to disks and volumes what is dirty, however long that takes; the VM ends soon after
    /// the answer.
    ///
    /// # Errors
    /// The agent refused. That it is gone is not an error.
    pub async fn shutdown(&self) -> Result<(), AgentError> {
        match self
            .pod
            .shutdown(context::with_timeout(0), &Empty::new())
            .await
            .map_err(AgentError::from)
        {
            Ok(_) | Err(AgentError::Gone) => Ok(()),
            Err(refused) => Err(refused),
        }
    }

    /// Whether the agent is still making a container, which then can't be deleted yet.
    async fn is_creating(&self, id: &str) -> Result<bool, AgentError> {
        let request = ContainerRequest {
            id: id.to_owned(),
            ..Default::default()
        };
        let state = self
            .containers
            .state(context::with_duration(CALL), &request)
            .await?;
        Ok(state.status == "creating")
    }
}

pub(super) fn container(id: &ContainerId) -> ContainerRequest {
    ContainerRequest {
        id: id.to_string(),
        ..Default::default()
    }
}

/// Removes a container through a pod's relay, or its vsock socket if it has none, from a program without a runtime; one that is being made, as soon as it is.
/// Fine if there is none, or no pod any more.
///
/// # Errors
/// The agent refused, or has not done it within [`CALL`].
pub fn delete_container(relay: &Path, vsock: &Path, id: &str) -> Result<(), AgentError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| AgentError::Unasked(error.to_string()))?;
    let deleted =
        runtime.block_on(async { tokio::time::timeout(CALL, forget(relay, vsock, id)).await });
    deleted.unwrap_or_else(|_| Err(AgentError::Unasked("no answer".into())))
}

/// Between two looks at a container that is being made: nothing tells when it is.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

async fn forget(relay: &Path, vsock: &Path, id: &str) -> Result<(), AgentError> {
    let reached = match relay.exists() {
        true => Agent::connect(relay).await.ok(),
        false => dial(vsock).await.ok().map(Agent::new),
    };
    let Some(agent) = reached else {
        return Ok(());
    };
    loop {
        // Asked first: one that is made in between is then found by Delete.
        let creating = agent.is_creating(id).await;
        match (agent.delete(id).await, creating) {
            (Ok(()) | Err(AgentError::Gone), _) => return Ok(()),
            (Err(AgentError::Refused { .. }), Ok(true)) => tokio::time::sleep(LOOK_AGAIN).await,
            (
                Err(AgentError::Refused {
                    code: Code::NOT_FOUND,
                    ..
                }),
                _,
            ) => return Ok(()),
            (Err(refused), _) => return Err(refused),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use std::sync::{Arc, Mutex};
    use ttrpc::asynchronous::{Server, TtrpcContext, transport::Listener};
    use vmbox_protocol::{
        agent::StateResponse,
        agent_ttrpc::{Containers, create_containers},
    };

    /// An agent that has a container ready after so many looks at it.
    struct Slow {
        looks: Mutex<usize>,
        deleted: Arc<Mutex<bool>>,
    }

    fn unknown() -> ttrpc::Error {
        ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, "no container"))
    }

    #[async_trait]
    impl Containers for Slow {
        async fn state(
            &self,
            _: &TtrpcContext,
            _: ContainerRequest,
        ) -> ttrpc::Result<StateResponse> {
            let mut looks = self.looks.lock().unwrap();
            let creating = *looks > 0;
            *looks = looks.saturating_sub(1);
            Ok(StateResponse {
                status: if creating { "creating" } else { "created" }.into(),
                ..Default::default()
            })
        }

        async fn delete(&self, _: &TtrpcContext, _: DeleteRequest) -> ttrpc::Result<Empty> {
            if *self.looks.lock().unwrap() > 0 {
                return Err(unknown());
            }
            *self.deleted.lock().unwrap() = true;
            Ok(Empty::new())
        }
    }

    #[tokio::test]
    async fn a_container_that_is_being_made_is_deleted_when_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let deleted = Arc::new(Mutex::new(false));
        let agent = Slow {
            looks: Mutex::new(3),
            deleted: deleted.clone(),
        };
        let listener = Listener::bind_unix(socket.to_str().unwrap()).unwrap();
        let mut server = Server::new()
            .add_listener(listener)
            .register_service(create_containers(Arc::new(agent)));
        server.start().await.unwrap();
        forget(&socket, Path::new("/no/such"), "web").await.unwrap();
        assert!(*deleted.lock().unwrap());
    }

    #[tokio::test]
    async fn an_agent_that_does_not_answer_is_not_taken_for_gone() {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let agent = Agent::new(Client::new(ttrpc::asynchronous::transport::Socket::from(
            ours,
        )));
        let context = context::with_duration(Duration::from_millis(10));
        let answer = agent
            .containers
            .state(context, &container(&"web".parse().unwrap()))
            .await;
        let error = AgentError::from(answer.unwrap_err());
        assert!(matches!(error, AgentError::Unasked(_)), "{error}");
    }

    #[tokio::test]
    async fn of_a_pod_that_has_ended_nothing_is_to_be_deleted() {
        forget(Path::new("/no/such/socket"), Path::new("/no/such"), "web")
            .await
            .unwrap();
    }
}
