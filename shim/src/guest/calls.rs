//! The calls that a runtime's verbs make to an agent beyond what a run needs.

use ttrpc::context;
use vmbox_protocol::agent::{
    AwaitOomRequest, AwaitOomResponse, ExecRequest, KillRequest, ProcessesResponse, SizeRequest,
    StatsResponse, Stdio, UpdateRequest,
};

use super::agent::{Agent, AgentError, CALL, container};
use crate::pod::ContainerId;

impl Agent {
    /// Signals the init process, or every process of the container.
    ///
    /// # Errors
    /// The agent refused (it has ended, say), or is gone.
    pub async fn kill(&self, id: &ContainerId, signal: u32, all: bool) -> Result<(), AgentError> {
        let request = KillRequest {
            id: id.to_string(),
            signal,
            all,
            ..Default::default()
        };
        self.containers
            .kill(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Starts another process, named `process` among those of the container; its process id in the guest. `cgroup` is a
    /// path from the container's own, or empty for that. In a paused container it `waits` for the resume, however long, or is
    /// refused.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn exec(
        &self,
        id: &ContainerId,
        process: &str,
        spec: Vec<u8>,
        stdio: Stdio,
        cgroup: &str,
        waits: bool,
    ) -> Result<u32, AgentError> {
        let request = ExecRequest {
            id: id.to_string(),
            process: process.to_owned(),
            spec,
            stdio: Some(stdio).into(),
            cgroup: cgroup.to_owned(),
            wait_for_resume: waits,
            ..Default::default()
        };
        let context = match waits {
            true => context::with_timeout(0),
            false => context::with_duration(CALL),
        };
        let answer = self.processes.exec(context, &request).await?;
        Ok(answer.pid)
    }

    /// Stops every process of a container where it is.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn pause(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.containers
            .pause(context::with_duration(CALL), &container(id))
            .await?;
        Ok(())
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn resume(&self, id: &ContainerId) -> Result<(), AgentError> {
        self.containers
            .resume(context::with_duration(CALL), &container(id))
            .await?;
        Ok(())
    }

    /// Changes limits: `resources` is an OCI `linux.resources` object.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn update(&self, id: &ContainerId, resources: Vec<u8>) -> Result<(), AgentError> {
        let request = UpdateRequest {
            id: id.to_string(),
            resources,
            ..Default::default()
        };
        self.containers
            .update(context::with_duration(CALL), &request)
            .await?;
        Ok(())
    }

    /// Has so many CPUs online, and lets the containers use so many bytes more, or less, than there were at boot.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn set_size(&self, vcpus: u8, extra_memory_bytes: i64) -> Result<(), AgentError> {
        let request = SizeRequest {
            vcpus: vcpus.into(),
            extra_memory_bytes,
            ..Default::default()
        };
        let context = context::with_duration(CALL);
        self.pod.set_size(context, &request).await?;
        Ok(())
    }

    /// What a container uses.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn stats(&self, id: &ContainerId) -> Result<StatsResponse, AgentError> {
        let (context, request) = (context::with_duration(CALL), container(id));
        Ok(self.containers.stats(context, &request).await?)
    }

    /// Waits until the container has lost more than `seen` processes for want of memory, or has stopped.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn await_oom(
        &self,
        id: &ContainerId,
        seen: u64,
    ) -> Result<AwaitOomResponse, AgentError> {
        let request = AwaitOomRequest {
            id: id.to_string(),
            seen,
            ..Default::default()
        };
        let answer = self
            .containers
            .await_oom(context::with_timeout(0), &request);
        Ok(answer.await?)
    }

    /// The processes of a container.
    ///
    /// # Errors
    /// The agent refused, or is gone.
    pub async fn list_processes(&self, id: &ContainerId) -> Result<ProcessesResponse, AgentError> {
        let (context, request) = (context::with_duration(CALL), container(id));
        Ok(self.containers.processes(context, &request).await?)
    }
}
