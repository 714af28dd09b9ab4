//! `Pod`: the machine as a whole.

use std::sync::Arc;

use async_trait::async_trait;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;
use vmbox_protocol::agent::{Empty, NetworkRequest, SetupRequest, SizeRequest};

use super::refusal;
use crate::boot;
use crate::cgroup;
use crate::cpus;
use crate::net::parse;
use crate::pod::{Pod, Setup};

pub struct PodService(pub Arc<Pod>);

#[async_trait]
impl vmbox_protocol::agent_ttrpc::Pod for PodService {
    async fn setup(&self, _: &TtrpcContext, request: SetupRequest) -> ttrpc::Result<Empty> {
        let setup = Setup {
            hostname: request.hostname,
            time_unix_ns: request.time_unix_ns,
            entropy: request.entropy,
            shares: request
                .shares
                .into_iter()
                .map(|share| (share.tag, share.dax))
                .collect(),
            lasting: request.lasting,
        };
        match self.0.setup(&setup) {
            Ok(true) => Ok(Empty::new()),
            Ok(false) => Err(refusal(
                Code::FAILED_PRECONDITION,
                "the pod was set up before",
            )),
            Err(error) => Err(refusal(Code::INTERNAL, error)),
        }
    }

    async fn set_network(&self, _: &TtrpcContext, request: NetworkRequest) -> ttrpc::Result<Empty> {
        let interfaces = parse(&request).map_err(|error| refusal(Code::INVALID_ARGUMENT, error))?;
        self.0
            .set_network(&interfaces)
            .map_err(|error| refusal(Code::INTERNAL, error))?;
        self.0
            .set_resolver(request.resolver)
            .await
            .map_err(|error| refusal(Code::INTERNAL, format!("listen at 127.0.0.11: {error}")))?;
        Ok(Empty::new())
    }

    async fn set_size(&self, _: &TtrpcContext, request: SizeRequest) -> ttrpc::Result<Empty> {
        cpus::set_online(cpus::CPUS.as_ref(), request.vcpus).map_err(|error| match error {
            cpus::CpuError::TooFew { .. } => refusal(Code::INVALID_ARGUMENT, error),
            cpus::CpuError::Refused { .. } => refusal(Code::INTERNAL, error),
        })?;
        cgroup::set_extra_memory(request.extra_memory_bytes)
            .map_err(|error| refusal(Code::INTERNAL, format!("limit all containers: {error}")))?;
        Ok(Empty::new())
    }

    async fn shutdown(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        self.0.stop_everything().await;
        self.0.shutdown.notify_one();
        Ok(Empty::new())
    }

    async fn debug_crash(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Empty> {
        if !boot::kernel_command_line_has("vmbox.debug") {
            return Err(refusal(
                Code::FAILED_PRECONDITION,
                "DebugCrash needs vmbox.debug on the kernel command line",
            ));
        }
        std::process::abort()
    }
}
