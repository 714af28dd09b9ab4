//! Where a container goes: a VM of its own, or that of its sandbox.
//!
//! A pod has no owner process. Its VM lives on a named lifeline that each keeper holds, so it ends with the last; its
//! directory names its containers in `members/`, and goes with the last that is deleted.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use oci_spec::runtime::Spec;
use rustix::fs::FlockOperation;
use tokio::runtime::Runtime;
use vmbox_protocol::agent::Stdio;

use super::{Context, cgroup, error::OciError, record::Record, sandbox, store, vm::Vm};
use crate::{
    guest::{self, Agent, AgentError, Greeter},
    journal::{self, Journal, Record as Resource},
    network::{
        self,
        follower::{self, Follower},
    },
    pod::{
        ContainerId,
        design::{self, VmPlaces},
        owner::PodError,
        place::{self, PodDir},
        size::{self, Host, Shape},
    },
    user::timing::Timing,
    vm::{self, Assets, Lifeline, Monitor, Overrides},
};

/// When the guest is gone, the monitor's explanation is waited for this long.
const EXPLANATION: Duration = Duration::from_millis(1500);

/// The pod of a container that is being created.
pub struct Place {
    /// Its directory.
    pub dir: PodDir,
    runtime: Runtime,
    new: Option<New>,
    agent: Option<Agent>,
    /// Of a new VM.
    monitor: Option<Monitor>,
    /// Of a new VM, until it has been told to go.
    follower: Option<Follower>,
    /// The host's mount namespace, while we are in the pod's.
    home: Option<File>,
}

/// What a new pod is made of.
struct New {
    journal: Journal,
    lifeline: Option<Lifeline>,
    shape: Shape,
    assets: Assets,
}

/// A process that the agent could not make.
pub struct NotMade(AgentError);

impl NotMade {
    /// As an error about the program that was to run.
    pub fn about(self, program: &str) -> OciError {
        OciError::of_program("create the container", self.0, program)
    }
}

impl Place {
    /// Decides where a container goes, and makes the directory of a new pod. Namespaces of the sandbox's become the
    /// guest's names for them.
    ///
    /// # Errors
    /// There is no such sandbox, or no room.
    pub fn for_container(context: &Context, spec: &mut Spec) -> Result<Self, OciError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(OciError::host("start the event loop"))?;
        let place = |dir, new| Self {
            dir,
            runtime,
            new,
            agent: None,
            monitor: None,
            follower: None,
            home: None,
        };
        if let Some(sandbox) = sandbox::find(context, spec)? {
            sandbox::join_namespaces(spec, &sandbox, &store::all(&context.root)?);
            return Ok(place(PodDir::at(sandbox.pod), None));
        }
        let (memory, cpus) = design::limits(spec)?;
        // Engines attach interfaces, and change limits, when they like.
        let size = size::for_one(memory, cpus)?;
        let shape = Shape::growing(size, network::SLOTS, Host::this());
        let assets = Assets::find(&Overrides::default())?;
        let id = format!("pod-{}", ContainerId::random());
        let dir = PodDir::at(context.run.join(id));
        let journal = Journal::create(&dir).map_err(OciError::host("make the pod's directory"))?;
        let lifeline = match furnish(&dir, &shape) {
            Ok(lifeline) => lifeline,
            Err(error) => {
                journal::undo(&dir)?;
                return Err(error);
            }
        };
        let new = New {
            journal,
            lifeline: Some(lifeline),
            shape,
            assets,
        };
        Ok(place(dir, Some(new)))
    }

    /// Whether its VM is made for this container.
    pub fn is_new(&self) -> bool {
        self.new.is_some()
    }

    /// Writes down that `container` is in this pod.
    ///
    /// # Errors
    /// The pod has been removed, or the file system refuses.
    pub fn register(&self, id: &ContainerId, container: &Path) -> Result<(), OciError> {
        let _lock = match &self.new {
            // Its journal is the lock.
            Some(_) => None,
            None => Some(lock(&self.dir)?),
        };
        let member = self.dir.members().join(id.as_str());
        fs::write(member, container.as_os_str().as_encoded_bytes())
            .map_err(OciError::host("enter the pod"))
    }

    /// Starts the process, in `cgroup`, that will carry the interfaces of the network namespace at `path` into a new VM.
    ///
    /// # Errors
    /// It can't be started.
    pub fn follow_network(
        &mut self,
        path: &Path,
        resolv_conf: Option<&Path>,
        cgroup: Option<&Path>,
    ) -> Result<(), OciError> {
        let Some(new) = &self.new else {
            return Ok(());
        };
        let follower = Follower::start(&self.dir, path, resolv_conf)?;
        let pid = follower.pid();
        if let Some(start_ticks) = journal::start_ticks(pid) {
            new.journal
                .record(&Resource::Follower { pid, start_ticks })
                .map_err(OciError::host("write the journal"))?;
            if let Some(cgroup) = cgroup {
                cgroup::enter(cgroup, pid)?;
            }
        }
        self.follower = Some(follower);
        Ok(())
    }

    /// Brings the agent to speak, and this process to where the pod's mounts are: a new VM is started,
    /// in `cgroup`.
    ///
    /// # Errors
    /// The VM does not come up, or has ended.
    pub fn open(&mut self, hostname: &str, cgroup: Option<&Path>) -> Result<(), OciError> {
        let Some(new) = &mut self.new else {
            let monitor = journal::monitor_of(&self.dir).ok_or(OciError::NotRunning)?;
            let home = home()?;
            place::enter_namespace_of(monitor)?;
            self.home = Some(home);
            let agent = self.runtime.block_on(connect(&self.dir))?;
            // Its limits are written down already.
            self.runtime.block_on(Vm::lock(&self.dir)?.fit(&agent))?;
            self.agent = Some(agent);
            return Ok(());
        };
        let home = home()?;
        place::enter_private_namespace()?;
        self.home = Some(home);
        let lifeline = new.lifeline.take().ok_or(OciError::Keeper)?;
        let dir = &self.dir;
        let (agent, monitor) = self.runtime.block_on(async {
            let monitor = launch(dir, new, lifeline)?;
            if let Some(cgroup) = cgroup {
                cgroup::enter(cgroup, monitor.pid())?;
            }
            let agent = boot(dir, &monitor, hostname).await?;
            Ok::<_, OciError>((agent, monitor))
        })?;
        self.agent = Some(agent);
        self.monitor = Some(monitor);
        Ok(())
    }

    /// Waits until what is in the followed network namespace has been carried into the new VM; from then on that goes on by
    /// itself. A pod that was there before has its network already.
    ///
    /// # Errors
    /// Something can't be carried.
    pub fn connect_network(&mut self) -> Result<(), OciError> {
        let Some(follower) = self.follower.take() else {
            return Ok(());
        };
        follower.release()?;
        Ok(follower::settle(&self.dir)?)
    }

    /// Has the agent create the container; the process id of its init in the guest, 0 for one that `rests`.
    ///
    /// # Errors
    /// The agent refused, or the guest is gone.
    pub fn create(
        &self,
        id: &ContainerId,
        spec: Vec<u8>,
        stdio: Stdio,
        rests: bool,
    ) -> Result<u32, NotMade> {
        let agent = self.agent.as_ref().ok_or(NotMade(AgentError::Gone))?;
        let create = agent.create(id, spec, stdio, rests);
        self.runtime.block_on(create).map_err(NotMade)
    }

    /// Leaves the VM to its keepers, and goes back to the host's mounts.
    ///
    /// # Errors
    /// The host's mount namespace can't be entered again.
    pub fn release(self) -> Result<(), OciError> {
        if let Some(monitor) = self.monitor {
            self.runtime.block_on(monitor.release());
        }
        match self.home {
            Some(home) => Ok(place::enter_namespace(&home)?),
            None => Ok(()),
        }
    }

    /// Undoes what was made for a container: all of a new pod.
    ///
    /// # Errors
    /// Something could not be undone.
    pub fn give_up(mut self, id: &ContainerId) -> Result<(), OciError> {
        if let Some(monitor) = self.monitor.take() {
            self.runtime.block_on(monitor.finish(Duration::ZERO));
        }
        if self.new.is_none() && self.home.is_some() {
            // In the pod's namespace, where the mounts are.
            let corner = self.dir.share().join(id.as_str());
            if let Some(agent) = &self.agent {
                let _ = self.runtime.block_on(agent.delete(id.as_str()));
            }
            place::unmount_below(&corner).map_err(OciError::host("unmount the container"))?;
            let _ = fs::remove_dir_all(corner);
        }
        if let Some(home) = &self.home {
            place::enter_namespace(home)?;
        }
        if self.new.is_some() {
            // Its mounts went with the namespace that only the monitor and we were in.
            return Ok(journal::undo(&self.dir)?);
        }
        unregister(&self.dir, id.as_str())
    }
}

/// What the directory of a pod holds beside its journal.
fn furnish(dir: &PodDir, shape: &Shape) -> Result<Lifeline, OciError> {
    let made = fs::create_dir(dir.members())
        .and_then(|()| fs::write(dir.shape(), serde_json::to_vec(shape)?));
    made.map_err(OciError::host("make the pod's directory"))?;
    Lifeline::named(&dir.lifeline()).map_err(OciError::host("make the pod's lifeline"))
}

fn launch(dir: &PodDir, new: &mut New, lifeline: Lifeline) -> Result<Monitor, OciError> {
    let config = design::vm_config(
        new.shape,
        &VmPlaces {
            kernel: &new.assets.kernel,
            image: Some(&new.assets.image),
            share: &dir.share(),
            vsock: &dir.vsock(),
            control: &dir.control(),
        },
        &[],
        0,
        "",
    );
    let timing = Arc::new(Timing::start());
    let monitor = Monitor::launch_on(
        lifeline,
        &new.assets.vmm,
        config,
        &dir.monitor_log(),
        &timing,
    )?;
    if let Some(start_ticks) = journal::start_ticks(monitor.pid()) {
        let resource = Resource::Monitor {
            pid: monitor.pid(),
            start_ticks,
        };
        new.journal
            .record(&resource)
            .map_err(OciError::host("write the journal"))?;
    }
    Ok(monitor)
}

async fn boot(dir: &PodDir, monitor: &Monitor, hostname: &str) -> Result<Agent, OciError> {
    let listener = dir.vsock_port(vmbox_protocol::AGENT_PORT);
    let greeter = Greeter::listen(&listener).map_err(OciError::host("listen for the agent"))?;
    let client = tokio::select! {
        client = greeter.accept() => client?,
        end = monitor.ended() => return Err(PodError::Ended(end).into()),
        () = vm::boot_is_overdue(monitor.pid()) => return Err(PodError::NoAgent.into()),
    };
    // Nobody dials it again.
    let _ = fs::remove_file(listener);
    let agent = Agent::new(client);
    match agent.setup_lasting(hostname).await {
        Ok(()) => Ok(agent),
        Err(AgentError::Gone) => {
            let end = tokio::time::timeout(EXPLANATION, monitor.ended()).await;
            Err(end
                .map_or(PodError::Setup(AgentError::Gone), PodError::Ended)
                .into())
        }
        Err(refused) => Err(PodError::Setup(refused).into()),
    }
}

/// The mount namespace that we are in.
fn home() -> Result<File, OciError> {
    File::open("/proc/self/ns/mnt").map_err(OciError::host("open the host's mount namespace"))
}

/// Reaches the agent of a pod that runs.
///
/// # Errors
/// It does not run.
pub async fn connect(dir: &PodDir) -> Result<Agent, OciError> {
    Ok(Agent::new(guest::dial(&dir.vsock()).await?))
}

/// Locks a pod's directory against those who enter and leave it.
///
/// # Errors
/// It is gone.
pub(super) fn lock(dir: &PodDir) -> Result<File, OciError> {
    let file = File::open(dir.path()).map_err(OciError::host("open the pod's directory"))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)
        .map_err(|error| OciError::host("lock the pod")(error.into()))?;
    match journal::is_at(&file, dir) {
        true => Ok(file),
        false => Err(OciError::NotRunning),
    }
}

/// Takes a container out of its pod: out of the guest and the share if the VM still runs for others, else the pod with it.
///
/// # Errors
/// Something could not be undone.
pub fn leave(dir: &PodDir, id: &str) -> Result<(), OciError> {
    let Ok(_lock) = lock(dir) else {
        // It is gone, by `gc` perhaps.
        return Ok(());
    };
    if others(dir, id)? {
        journal::leave(dir, id)?;
        unregister_locked(dir, id)
    } else {
        Ok(journal::undo(dir)?)
    }
}

fn others(dir: &PodDir, id: &str) -> Result<bool, OciError> {
    let members = fs::read_dir(dir.members()).map_err(OciError::host("read the pod's members"))?;
    Ok(members.flatten().any(|member| member.file_name() != id))
}

fn unregister(dir: &PodDir, id: &str) -> Result<(), OciError> {
    let _lock = lock(dir)?;
    unregister_locked(dir, id)
}

fn unregister_locked(dir: &PodDir, id: &str) -> Result<(), OciError> {
    match fs::remove_file(dir.members().join(id)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(OciError::host("leave the pod")(error))
        }
        _ => Ok(()),
    }
}

/// The directories of a pod's containers; none for a pod of `vmbox run`.
///
/// # Errors
/// As the file system says.
pub fn members(dir: &PodDir) -> io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStringExt;
    let entries = match fs::read_dir(dir.members()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let paths = entries.flatten().map(|entry| fs::read(entry.path()));
    let paths: io::Result<Vec<_>> = paths.collect();
    let path = |bytes| PathBuf::from(std::ffi::OsString::from_vec(bytes));
    Ok(paths?.into_iter().map(path).collect())
}

/// Whether a pod still has a container of an engine, alive or not. One that was made for a container that never came to be
/// has none.
pub fn has_containers(dir: &PodDir) -> bool {
    let is_in =
        |container: &PathBuf| Record::read(container).is_ok_and(|record| record.pod == dir.path());
    members(dir).unwrap_or_default().iter().any(is_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_read_back() {
        let run = tempfile::tempdir().unwrap();
        let dir = PodDir::at(run.path().to_owned());
        assert!(members(&dir).unwrap().is_empty());
        fs::create_dir(dir.members()).unwrap();
        fs::write(dir.members().join("web"), "/run/vmbox/web").unwrap();
        assert_eq!(members(&dir).unwrap(), [Path::new("/run/vmbox/web")]);
        assert!(!others(&dir, "web").unwrap());
        assert!(others(&dir, "db").unwrap());
    }
}
