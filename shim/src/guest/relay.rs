//! Lets other processes of this host call a pod's agent: a ttrpc server that passes every call on unread.
//!
//! The agent serves one connection, the one that it dialed, and the pod's owner has it. `vmbox run --pod` calls the
//! agent through the owner, at `<pod dir>/agent.sock`.

use std::{collections::HashMap, io, path::Path, sync::Arc};

use async_trait::async_trait;
use ttrpc::asynchronous::{
    Client, MethodHandler, Server, Service, TtrpcContext, transport::Listener,
};

/// What others may call. Setup and Shutdown are the owner's.
const RELAYED: &[(&str, &[&str])] = &[
    (
        "vmbox.agent.v1.Containers",
        &[
            "Create",
            "Start",
            "State",
            "Kill",
            "Delete",
            "Stats",
            "Pause",
            "Resume",
            "Processes",
        ],
    ),
    (
        "vmbox.agent.v1.Processes",
        &["Exec", "Wait", "Signal", "Resize"],
    ),
    // Refused by the agent itself, unless the pod was started for debugging.
    ("vmbox.agent.v1.Pod", &["DebugCrash"]),
];

struct PassOn(Client);

#[async_trait]
impl MethodHandler for PassOn {
    async fn handler(
        &self,
        _: TtrpcContext,
        request: ttrpc::Request,
    ) -> ttrpc::Result<ttrpc::Response> {
        match self.0.request(request).await {
            Ok(response) => Ok(response),
            // A refusal travels as a response of its own; only a lost connection is ours to report.
            Err(ttrpc::Error::RpcStatus(status)) => Ok(ttrpc::Response {
                status: Some(status).into(),
                ..Default::default()
            }),
            Err(error) => Err(error),
        }
    }
}

/// Serves at `socket` until the server is dropped.
///
/// # Errors
/// As bind(2) says.
pub async fn serve(socket: &Path, agent: Client) -> io::Result<Server> {
    let listener = Listener::bind_unix(socket.to_string_lossy())?;
    let mut server = Server::new().add_listener(listener);
    for (service, methods) in RELAYED {
        let methods = methods
            .iter()
            .map(|method| {
                (
                    (*method).to_owned(),
                    Box::new(PassOn(agent.clone())) as Box<dyn MethodHandler + Send + Sync>,
                )
            })
            .collect();
        server = server.register_service(HashMap::from([(
            (*service).to_owned(),
            Service {
                methods,
                streams: HashMap::<_, Arc<_>>::new(),
            },
        )]));
    }
    server.start().await.map_err(io::Error::other)?;
    Ok(server)
}
