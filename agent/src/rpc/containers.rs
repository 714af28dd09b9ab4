//! `Containers`: create to delete.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vmbox_protocol::agent::{
    AwaitOomRequest, AwaitOomResponse, ContainerRequest, CreateRequest, CreateResponse,
    DeleteRequest, Empty, KillRequest, ProcessesResponse, StateResponse, StatsResponse,
    UpdateRequest,
};

use super::{connection, figures, status};
use crate::pod::Pod;

pub struct ContainersService(pub Arc<Pod>);

#[async_trait]
impl vmbox_protocol::agent_ttrpc::Containers for ContainersService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateRequest,
    ) -> ttrpc::Result<CreateResponse> {
        let connection = connection(request.stdio.as_ref());
        let pid = self
            .0
            .create(&request.id, &request.spec, connection, request.rests)
            .await
            .map_err(status)?;
        Ok(CreateResponse {
            pid,
            ..Default::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.0
            .container(&request.id)
            .map_err(status)?
            .start()
            .await
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn state(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StateResponse> {
        let (state, pid) = self.0.state(&request.id).map_err(status)?;
        Ok(StateResponse {
            status: state.name().into(),
            pid,
            ..Default::default()
        })
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        self.0
            .container(&request.id)
            .and_then(|c| c.kill(request.signal, request.all))
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<Empty> {
        self.0
            .delete(&request.id, request.force)
            .await
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateRequest) -> ttrpc::Result<Empty> {
        self.0
            .container(&request.id)
            .map_err(status)?
            .update(&request.resources)
            .await
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn await_oom(
        &self,
        _: &TtrpcContext,
        request: AwaitOomRequest,
    ) -> ttrpc::Result<AwaitOomResponse> {
        let container = self.0.container(&request.id).map_err(status)?;
        let waited = container.wait_for_oom(request.seen).await;
        let (oom_kills, stopped) = waited.map_err(status)?;
        Ok(AwaitOomResponse {
            oom_kills,
            stopped,
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StatsResponse> {
        let container = self.0.container(&request.id).map_err(status)?;
        Ok(figures::stats(container.cgroup().stats()))
    }

    async fn pause(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.0
            .container(&request.id)
            .map_err(status)?
            .pause()
            .await
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ContainerRequest) -> ttrpc::Result<Empty> {
        self.0
            .container(&request.id)
            .map_err(status)?
            .resume()
            .await
            .map_err(status)?;
        Ok(Empty::new())
    }

    async fn processes(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<ProcessesResponse> {
        let container = self.0.container(&request.id).map_err(status)?;
        let pids = container.cgroup().processes();
        let details = crate::processes::details(&pids);
        Ok(ProcessesResponse {
            pids,
            processes: details.into_iter().map(figures::process).collect(),
            ..Default::default()
        })
    }
}
