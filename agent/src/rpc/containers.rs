//! `Containers`: create to delete.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::r#async::TtrpcContext;
use vmbox_protocol::agent::{
    ContainerRequest, CreateRequest, CreateResponse, DeleteRequest, Empty, KillRequest,
    ProcessesResponse, StateResponse, StatsResponse,
};

use super::{connection, status};
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
            .create(&request.id, &request.spec, connection)
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

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: ContainerRequest,
    ) -> ttrpc::Result<StatsResponse> {
        let stats = self
            .0
            .container(&request.id)
            .map_err(status)?
            .cgroup()
            .stats();
        Ok(StatsResponse {
            cpu_usage_us: stats.cpu_usage_us,
            memory_bytes: stats.memory_bytes,
            memory_limit_bytes: stats.memory_limit_bytes,
            memory_peak_bytes: stats.memory_peak_bytes,
            pids: stats.pids,
            oom_kills: stats.oom_kills,
            ..Default::default()
        })
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
        let pids = self
            .0
            .container(&request.id)
            .map_err(status)?
            .cgroup()
            .processes();
        Ok(ProcessesResponse {
            pids,
            ..Default::default()
        })
    }
}
