//! `Processes`: exec, wait, signals, terminal size.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vmbox_protocol::agent::{
    Empty, ExecRequest, ExecResponse, ProcessRequest, ResizeRequest, SignalRequest, WaitResponse,
};

use super::{connection, status};
use crate::container::{ContainerError, signal_process};
use crate::pod::Pod;

pub struct ProcessesService(pub Arc<Pod>);

#[async_trait]
impl vmbox_protocol::agent_ttrpc::Processes for ProcessesService {
    async fn exec(&self, _: &TtrpcContext, request: ExecRequest) -> ttrpc::Result<ExecResponse> {
        let container = self.0.container(&request.id).map_err(status)?;
        let connection = connection(request.stdio.as_ref());
        let place = Some(request.cgroup).filter(|place| !place.is_empty());
        let (process, waits) = (&request.process, request.wait_for_resume);
        let pid = container
            .exec(process, &request.spec, connection, place, waits)
            .await
            .map_err(status)?;
        Ok(ExecResponse {
            pid,
            ..Default::default()
        })
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitResponse> {
        let container = self.0.container(&request.id).map_err(status)?;
        let process = container.process(&request.process).map_err(status)?;
        let exit = process.wait().await;
        container.forget(&request.process);
        Ok(WaitResponse {
            status: exit.status,
            oom_killed: exit.oom_killed,
            ..Default::default()
        })
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let process = self
            .0
            .container(&request.id)
            .and_then(|c| c.process(&request.process))
            .map_err(status)?;
        signal_process(&process, request.signal).map_err(status)?;
        Ok(Empty::new())
    }

    async fn resize(&self, _: &TtrpcContext, request: ResizeRequest) -> ttrpc::Result<Empty> {
        let process = self
            .0
            .container(&request.id)
            .and_then(|c| c.process(&request.process))
            .map_err(status)?;
        match process.resize(request.columns, request.rows) {
            Ok(true) => Ok(Empty::new()),
            Ok(false) => Err(status(ContainerError::NoTerminal(format!(
                "process {:?}",
                request.process
            )))),
            Err(source) => Err(status(ContainerError::Io {
                step: "resize the terminal".into(),
                source,
            })),
        }
    }
}
