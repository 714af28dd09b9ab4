//! The VM of a pod as its containers' limits change: memory is added and taken, CPUs come and go.

use std::fs::{self, File};

use vmbox_config::Control;

use super::{error::OciError, pods, record::Record};
use crate::{
    guest::Agent,
    pod::{
        ContainerId,
        place::PodDir,
        size::{Limits, Shape, Size, for_all},
    },
    vm::control,
};

/// A pod's VM, which nobody else changes meanwhile.
pub struct Vm<'a> {
    dir: &'a PodDir,
    shape: Shape,
    _lock: File,
}

impl<'a> Vm<'a> {
    /// Waits until nobody else works on the pod.
    ///
    /// # Errors
    /// It is gone.
    pub fn lock(dir: &'a PodDir) -> Result<Self, OciError> {
        let lock = pods::lock(dir)?;
        let shape = fs::read(dir.shape()).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        Ok(Self {
            dir,
            shape: shape.map_err(OciError::host("read the shape of the pod's VM"))?,
            _lock: lock,
        })
    }

    /// The limits of its containers, but for `except`.
    fn limits(&self, except: Option<&ContainerId>) -> Result<Vec<Limits>, OciError> {
        let members = pods::members(self.dir).map_err(OciError::host("read the pod's members"))?;
        let records = members.iter().filter_map(|dir| Record::read(dir).ok());
        let others = records.filter(|record| except.is_none_or(|id| record.id != id.as_str()));
        Ok(others.map(|record| record.limits).collect())
    }

    /// The size for these limits, as much of it as the VM can have, when it has `now`; and whether that is all.
    fn size(&self, limits: &[Limits], now: Size) -> (Size, bool) {
        let wanted = for_all(limits, now);
        let size = self.shape.reach(wanted);
        (size, size == wanted)
    }

    /// Makes it as large as the limits of its containers say.
    ///
    /// # Errors
    /// The guest does not take the memory, or the agent refuses.
    pub async fn fit(&self, agent: &Agent) -> Result<(), OciError> {
        let (size, _) = self.size(&self.limits(None)?, self.shape.at_boot());
        self.resize(agent, size).await
    }

    /// Changes the limits of one container, by `change`, from `old` to `new`, and the VM with them: what is to be used is there
    /// before, and what is not to be used any more goes after. Whether the VM can be as large as that.
    ///
    /// # Errors
    /// `change` fails, or the VM can't grow; then it is as large as it was.
    pub async fn change(
        &self,
        agent: &Agent,
        id: &ContainerId,
        (old, new): (Limits, Limits),
        change: impl AsyncFnOnce() -> Result<(), OciError>,
    ) -> Result<bool, OciError> {
        let others = self.limits(Some(id))?;
        let with = |limits: Limits, now| self.size(&[&others[..], &[limits]].concat(), now);
        let (before, _) = with(old, self.shape.at_boot());
        let (after, is_all) = with(new, before);
        let most = Size {
            memory_mib: before.memory_mib.max(after.memory_mib),
            vcpus: before.vcpus.max(after.vcpus),
        };
        let changed = match self.resize(agent, most).await {
            Ok(()) => change().await,
            Err(error) => Err(error),
        };
        match changed {
            Ok(()) => self.resize(agent, after).await.map(|()| is_all),
            Err(error) => {
                // What failed is the news, not that this does too.
                let _ = self.resize(agent, before).await;
                Err(error)
            }
        }
    }

    async fn resize(&self, agent: &Agent, to: Size) -> Result<(), OciError> {
        let boot = self.shape.memory_mib;
        let target_mib = boot.saturating_sub(to.memory_mib);
        let extra_mib = to.memory_mib.saturating_sub(boot);
        let socket = self.dir.control();
        control::ask(&socket, &Control::Balloon { target_mib }, None)?;
        control::ask(&socket, &Control::Memory { extra_mib }, None)?;
        let beside_boot = i64::from(to.memory_mib) - i64::from(boot);
        let sized = agent.set_size(to.vcpus, beside_boot << 20).await;
        sized.map_err(|error| OciError::Agent("change the size of the guest", error))
    }
}
