//! The machine as a whole: what the host tells it once, the containers in it, and its end.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::mount::{MsFlags, mount};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::time::{ClockId, clock_settime};
use tokio::sync::Notify;
use vmbox_protocol::resolver::RESOLVER;

use crate::boot::{BootError, Step};
use crate::container::{Connection, Container, ContainerError, State, Tools};
use crate::net::{Interface, NetError, Network, Resolver};
use crate::spec::{self, ContainerId, Init};

/// Where virtio-fs tags appear.
pub const SHARES: &str = "/run/vmbox/shares";

/// The pod's containers; None while one is being created.
type Containers = HashMap<ContainerId, Option<Arc<Container>>>;

/// What the services share.
#[derive(Debug)]
pub struct Pod {
    tools: Tools,
    containers: Mutex<Containers>,
    network: Mutex<Network>,
    resolver: tokio::sync::Mutex<Option<Resolver>>,
    set_up: AtomicBool,
    lasting: AtomicBool,
    /// Told when the host asked for the end, so that the connection is given up after the answer.
    pub shutdown: Notify,
}

/// What [`Pod::setup`] is told.
#[derive(Debug, Default)]
pub struct Setup {
    pub hostname: String,
    pub time_unix_ns: i64,
    pub entropy: Vec<u8>,
    /// Tag, and whether with DAX.
    pub shares: Vec<(String, bool)>,
    /// The guest outlives the first connection.
    pub lasting: bool,
}

impl Pod {
    /// An empty pod.
    pub fn new(tools: Tools, network: Network) -> Self {
        Self {
            tools,
            containers: Mutex::default(),
            network: Mutex::new(network),
            resolver: tokio::sync::Mutex::default(),
            set_up: AtomicBool::new(false),
            lasting: AtomicBool::new(false),
            shutdown: Notify::new(),
        }
    }

    fn containers(&self) -> MutexGuard<'_, Containers> {
        self.containers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the machine, sets its clock, feeds its entropy pool, mounts its shares. False when that was done before.
    ///
    /// # Errors
    /// The step that failed.
    pub fn setup(&self, setup: &Setup) -> Result<bool, BootError> {
        if self.set_up.swap(true, Ordering::SeqCst) {
            return Ok(false);
        }
        if !setup.entropy.is_empty() {
            add_entropy(&setup.entropy).step("add entropy")?;
        }
        if setup.time_unix_ns > 0 {
            clock_settime(
                ClockId::CLOCK_REALTIME,
                TimeSpec::nanoseconds(setup.time_unix_ns),
            )
            .step("set the clock")?;
        }
        if !setup.hostname.is_empty() {
            nix::unistd::sethostname(&setup.hostname).step("set the hostname")?;
        }
        for (tag, dax) in &setup.shares {
            mount_share(tag, *dax)?;
        }
        self.lasting.store(setup.lasting, Ordering::SeqCst);
        Ok(true)
    }

    /// Makes the pod's interfaces what the host says.
    ///
    /// # Errors
    /// The step that failed.
    pub fn set_network(&self, interfaces: &[Interface]) -> Result<(), NetError> {
        let mut network = self.network.lock().unwrap_or_else(PoisonError::into_inner);
        network.apply(interfaces)
    }

    /// Answers at Docker's resolver's address, or no longer.
    ///
    /// # Errors
    /// A container has the address.
    pub async fn set_resolver(&self, wanted: bool) -> io::Result<()> {
        let mut resolver = self.resolver.lock().await;
        match (wanted, resolver.is_some()) {
            (true, false) => {
                let dialer = self.tools.dialer.clone();
                *resolver = Some(Resolver::start(RESOLVER.into(), dialer).await?);
            }
            (false, true) => *resolver = None,
            (true, true) | (false, false) => {}
        }
        Ok(())
    }

    /// Whether the guest goes on when the connection that we dialed has ended.
    pub fn is_lasting(&self) -> bool {
        self.lasting.load(Ordering::SeqCst)
    }

    /// Creates a container under a name that no other has.
    ///
    /// # Errors
    /// The name is taken, or [`Container::create`] fails.
    pub async fn create(
        &self,
        id: &str,
        spec: &[u8],
        connection: Connection,
        rests: bool,
    ) -> Result<u32, ContainerError> {
        let id = ContainerId::parse(id)?;
        {
            let mut containers = self.containers();
            if containers.contains_key(&id) {
                return Err(ContainerError::Exists(id));
            }
            containers.insert(id.clone(), None);
        }
        match self.make(&id, spec, connection, rests).await {
            Ok(container) => {
                let pid = container.pid();
                self.containers().insert(id, Some(container));
                Ok(pid)
            }
            Err(error) => {
                self.containers().remove(&id);
                Err(error)
            }
        }
    }

    async fn make(
        &self,
        id: &ContainerId,
        spec: &[u8],
        connection: Connection,
        rests: bool,
    ) -> Result<Arc<Container>, ContainerError> {
        for other in spec::needed(spec)? {
            // What is not there is told by the number of its namespace.
            if let Ok(other) = self.container(&other) {
                other.wake().await?;
            }
        }
        let find = |other: &str| self.init(other);
        let prepared = spec::prepare(spec, id, connection.terminal, &find)?;
        let tools = self.tools.clone();
        Container::create(id.clone(), prepared, connection, tools, rests).await
    }

    /// The init of a container that has not stopped.
    fn init(&self, id: &str) -> Option<Init> {
        let container = self.container(id).ok()?;
        match (container.state(), container.pid()) {
            (State::Stopped, _) => None,
            (_, 0) => Some(Init::Resting),
            (_, pid) => Some(Init::Pid(pid)),
        }
    }

    /// A container and its state; None for the container while it is being created.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn state(&self, id: &str) -> Result<(State, u32), ContainerError> {
        let found = self.find(id)?;
        Ok(found.map_or((State::Creating, 0), |c| (c.state(), c.pid())))
    }

    /// A container that was created.
    ///
    /// # Errors
    /// There is none of that name, or not yet.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, ContainerError> {
        self.find(id)?
            .ok_or_else(|| ContainerError::Unknown(id.into()))
    }

    fn find(&self, id: &str) -> Result<Option<Arc<Container>>, ContainerError> {
        let key = ContainerId::parse(id)?;
        self.containers()
            .get(&key)
            .cloned()
            .ok_or_else(|| ContainerError::Unknown(id.into()))
    }

    /// Deletes a container and frees its name.
    ///
    /// # Errors
    /// [`Container::delete`]'s.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), ContainerError> {
        let container = self.container(id)?;
        container.delete(force).await?;
        self.containers().remove(&ContainerId::parse(id)?);
        Ok(())
    }

    /// Kills every container and writes what is dirty. The caller answers the host, then the machine ends.
    pub async fn stop_everything(&self) {
        let all: Vec<_> = self.containers().values().flatten().cloned().collect();
        for container in &all {
            container.kill_all();
        }
        for container in all {
            if let Ok(init) = container.process("") {
                init.wait().await;
            }
        }
        nix::unistd::sync();
    }
}

/// A tag is a file name here, and at most 36 bytes (virtio 1.2 §5.11.4).
fn mount_share(tag: &str, dax: bool) -> Result<(), BootError> {
    let good = (1..=36).contains(&tag.len()) && !tag.contains('/') && tag != "." && tag != "..";
    if !good {
        return Err(io::Error::from(io::ErrorKind::InvalidInput))
            .step(format!("mount share {tag:?}"));
    }
    let target = Path::new(SHARES).join(tag);
    fs::create_dir_all(&target).step(format!("create {}", target.display()))?;
    mount(
        Some(tag),
        &target,
        Some("virtiofs"),
        MsFlags::empty(),
        dax.then_some("dax"),
    )
    .step(format!("mount share {tag:?} on {}", target.display()))
}

/// The most that the pool takes at once is far above any seed that the host has reason to send.
const MAX_SEED: usize = 4096;

/// RNDADDENTROPY: counts as entropy, so that getrandom(2) never blocks (drivers/char/random.c).
fn add_entropy(seed: &[u8]) -> io::Result<()> {
    let seed = seed.get(..seed.len().min(MAX_SEED)).unwrap_or_default();
    let mut request = Vec::with_capacity(8 + seed.len());
    request.extend_from_slice(&((seed.len() * 8) as i32).to_ne_bytes());
    request.extend_from_slice(&(seed.len() as i32).to_ne_bytes());
    request.extend_from_slice(seed);
    let random = fs::File::open("/dev/random")?;
    const RNDADDENTROPY: libc::c_ulong = nix::request_code_write!(b'R', 3, 8);
    // SAFETY: a rand_pool_info is two ints and as many bytes as the second says; `request` is laid out so.
    nix::errno::Errno::result(unsafe {
        libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, request.as_ptr())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        let tools = Tools {
            reaper: Default::default(),
            dialer: crate::host::Dialer::Vsock,
        };
        Pod::new(tools, Network::new(None))
    }

    #[tokio::test]
    async fn failed_create_frees_the_name() {
        let pod = pod();
        for _ in 0..2 {
            let error = pod
                .create("a", b"{}", Connection::default(), false)
                .await
                .unwrap_err();
            assert!(matches!(error, ContainerError::Spec(_)), "{error}");
        }
        assert!(matches!(pod.state("a"), Err(ContainerError::Unknown(_))));
    }

    #[test]
    fn a_tag_can_not_leave_the_folder_of_shares() {
        for tag in ["", "..", "../etc", "a/b"] {
            assert!(mount_share(tag, false).is_err(), "{tag}");
        }
    }
}
