//! The network of one pod: brought in line with its namespace, as often as that changes, and undone.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use netlink_sys::Socket;
use rustix::io::Errno;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
    task::JoinHandle,
};
use vmbox_config::Control;
use vmbox_protocol::{
    agent::{Interface, NetworkRequest},
    resolver::RESOLVER_PORT,
    slot_mac,
};

use super::{
    NetworkError, SLOTS, Step as _, mirror,
    namespace::Namespace,
    resolver,
    rtnetlink::{self, Rtnetlink},
    slots::{Carried, Slots, Step},
    survey::{Found, Lists},
    tap,
};
use crate::{
    guest::Agent,
    journal::{Journal, Nic, Record},
    pod::place::PodDir,
    vm::control,
};

/// Of linux/rtnetlink.h: links, addresses and routes of both families.
const GROUPS: [u32; 5] = [1, 5, 7, 9, 11];

/// What a pod's network is connected to.
#[derive(Clone, Copy)]
pub struct Ends<'a> {
    /// The pod's directory: the monitor's control socket, and sockets for the guest.
    pub dir: &'a PodDir,
    /// The guest's agent.
    pub agent: &'a Agent,
    /// Where what is made is written down first.
    pub journal: &'a Journal,
}

/// A pod's network.
#[derive(Debug)]
pub struct PodNetwork {
    namespace: Arc<Namespace>,
    socket: Rtnetlink,
    slots: Slots,
    /// What the guest was told last. It has to be told even of no interface: until then it shows the empty slots.
    told: Option<NetworkRequest>,
    /// The container's resolv.conf: if it names Docker's resolver, the guest has that.
    resolv_conf: Option<PathBuf>,
    /// The host's end of that.
    resolver: Option<JoinHandle<()>>,
    /// Names that were complained about: once is enough.
    left_out: Vec<String>,
}

impl PodNetwork {
    /// Of a VM whose slots are empty.
    ///
    /// # Errors
    /// The namespace can't be used.
    pub fn open(namespace: &Path) -> Result<Self, NetworkError> {
        let namespace = Namespace::open(namespace)?;
        let socket = namespace
            .enter(Rtnetlink::open)
            .step(|| "open rtnetlink".into())?;
        Ok(Self {
            namespace: Arc::new(namespace),
            socket,
            slots: Slots::new(SLOTS),
            told: None,
            resolv_conf: None,
            resolver: None,
            left_out: Vec::new(),
        })
    }

    /// Where the container's resolv.conf is on the host, if its engine has made one.
    pub fn set_resolv_conf(&mut self, path: Option<PathBuf>) {
        self.resolv_conf = path;
    }

    /// Takes up what another process has done for this pod, as its journal says.
    pub fn take_up(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::Nic(nic) if nic.namespace == self.namespace.id() => {
                    let carried = Carried {
                        index: nic.index,
                        name: nic.interface.clone(),
                    };
                    self.slots.set(nic.slot, Some(carried));
                }
                Record::NicGone { slot } => self.slots.set(*slot, None),
                _ => {}
            }
        }
    }

    /// Tells when something changes in the namespace. What changed before this call needs a [`Self::sync`].
    ///
    /// # Errors
    /// No socket.
    pub fn watch(&self) -> Result<Watch, NetworkError> {
        let listen = || {
            let socket = rtnetlink::connected(&GROUPS)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        let socket = self
            .namespace
            .enter(listen)
            .step(|| "listen for changes of the network".into())?;
        Ok(Watch { socket })
    }

    /// Brings the VM in line with the namespace: taps, redirections, the monitor's slots, the guest's interfaces. Does nothing
    /// if nothing has changed.
    ///
    /// # Errors
    /// The first thing that failed; another call goes on from there.
    pub async fn sync(&mut self, ends: Ends<'_>) -> Result<(), NetworkError> {
        let found = self.carry(ends.dir, ends.journal)?;
        let request = NetworkRequest {
            interfaces: self.as_wanted(found),
            resolver: self.wants_resolver(),
            ..Default::default()
        };
        if self.told.as_ref() != Some(&request) {
            ends.agent
                .set_network(&request)
                .await
                .map_err(NetworkError::Agent)?;
            self.told = Some(request);
        }
        Ok(())
    }

    /// [`Self::sync`] by a process that lives as long as the pod: it answers for Docker's resolver, too.
    ///
    /// # Errors
    /// As [`Self::sync`].
    pub async fn bring(&mut self, ends: Ends<'_>) -> Result<(), NetworkError> {
        if self.resolver.is_none() && self.wants_resolver() {
            let listener = UnixListener::bind(ends.dir.vsock_port(RESOLVER_PORT))
                .step(|| "listen for the guest's resolver".into())?;
            let serving = resolver::serve(listener, self.namespace.clone());
            self.resolver = Some(tokio::spawn(serving));
        }
        self.sync(ends).await
    }

    fn wants_resolver(&self) -> bool {
        self.resolv_conf
            .as_deref()
            .is_some_and(resolver::is_named_in)
    }

    /// Does [`Self::bring`] after every change, for ever. What fails is told to the log.
    ///
    /// # Errors
    /// Changes can't be watched.
    pub async fn follow(&mut self, watch: Watch, ends: Ends<'_>) -> Result<(), NetworkError> {
        let step = || "listen for changes of the network".to_owned();
        // SAFETY: a Watch keeps its descriptor open for as long as it lives, and the AsyncFd owns it.
        let watch = unsafe { AsyncFd::register_with_interest(watch, Interest::READABLE) };
        let watch = watch.map_err(io::Error::from).step(step)?;
        loop {
            let mut ready = watch.readable().await.step(step)?;
            watch.get_ref().drain();
            ready.clear_ready();
            if let Err(error) = self.bring(ends).await {
                tracing::warn!("the network has changed: {}", crate::user::one_line(&error));
            }
        }
    }

    /// The host's side: every interface that has a slot is carried into the VM when this returns.
    fn carry(&mut self, dir: &PodDir, journal: &Journal) -> Result<Vec<Found>, NetworkError> {
        let lists = Lists::read(&mut self.socket).step(|| "list the pod's interfaces".into())?;
        let found = lists.interfaces(&self.slots.carried());
        for step in self.slots.plan(&found) {
            match step {
                Step::Empty(slot) => self.empty(slot, dir, journal)?,
                Step::Fill(slot, carried) => {
                    let mtu = found.iter().find(|f| f.index == carried.index);
                    let mtu = mtu.map_or(0, |found| found.wire.mtu);
                    self.fill(slot, carried, mtu, dir, journal)?;
                }
                Step::NoRoom(name) if !self.left_out.contains(&name) => {
                    tracing::warn!("{name} is left out: a VM has {SLOTS} NICs");
                    self.left_out.push(name);
                }
                Step::NoRoom(_) => {}
            }
        }
        self.follow_mtu(&found)?;
        Ok(found)
    }

    fn fill(
        &mut self,
        slot: u8,
        carried: Carried,
        mtu: u32,
        dir: &PodDir,
        journal: &Journal,
    ) -> Result<(), NetworkError> {
        let tap_name = tap::name(slot);
        let nic = Nic {
            path: self.namespace.path().to_owned(),
            namespace: self.namespace.id(),
            interface: carried.name.clone(),
            index: carried.index,
            slot,
        };
        // Before it is written down: what is not ours must not be undone.
        if tap::index_of(&mut self.socket, &tap_name)
            .step(|| "list the pod's interfaces".into())?
            .is_some()
        {
            return Err(NetworkError::Taken {
                interface: carried.name,
                tap: tap_name,
            });
        }
        journal
            .record(&Record::Nic(nic))
            .map_err(NetworkError::Journal)?;
        self.slots.set(slot, Some(carried.clone()));
        let made = self.wire(slot, &carried, mtu, &dir.control());
        if made.is_err() {
            // The tap went with its descriptor; the next sync begins anew.
            let _ = mirror::end(&mut self.socket, carried.index);
            self.slots.set(slot, None);
        }
        made
    }

    fn wire(
        &mut self,
        slot: u8,
        carried: &Carried,
        mtu: u32,
        control: &Path,
    ) -> Result<(), NetworkError> {
        let name = tap::name(slot);
        let tap = tap::make(&self.namespace, slot).step(|| format!("make the tap {name}"))?;
        let socket = &mut self.socket;
        let index = tap::index_of(socket, &name)
            .and_then(|index| index.ok_or(io::ErrorKind::NotFound.into()))
            .step(|| format!("find the tap {name}"))?;
        tap::set_up(socket, index, mtu).step(|| format!("set the tap {name} up"))?;
        mirror::join(socket, carried.index, index)
            .step(|| format!("redirect {} to {name} (tc)", carried.name))?;
        control::ask(control, &Control::AttachNic { slot }, Some(tap.as_fd())).map_err(|source| {
            NetworkError::Monitor {
                interface: carried.name.clone(),
                source,
            }
        })
    }

    fn empty(&mut self, slot: u8, dir: &PodDir, journal: &Journal) -> Result<(), NetworkError> {
        let Some(carried) = self.slots.get(slot).cloned() else {
            return Ok(());
        };
        // It may be gone already, with the tap.
        if let Err(error) = control::ask(&dir.control(), &Control::DetachNic { slot }, None) {
            tracing::debug!(%error, slot, "detach a NIC");
        }
        take_down(&mut self.socket, slot, carried.index)
            .step(|| format!("take {} out of the VM", carried.name))?;
        journal
            .record(&Record::NicGone { slot })
            .map_err(NetworkError::Journal)?;
        self.slots.set(slot, None);
        Ok(())
    }

    /// A tap must take frames as long as its interface gives.
    fn follow_mtu(&mut self, found: &[Found]) -> Result<(), NetworkError> {
        for found in found {
            let mut told = self.told.iter().flat_map(|told| &told.interfaces);
            let told = told.find(|told| told.name == found.wire.name);
            let changed = told.is_some_and(|told| told.mtu != found.wire.mtu);
            let slot = self.slots.slot_of(found.index).filter(|_| changed);
            let Some(slot) = slot else { continue };
            let name = tap::name(slot);
            let index = tap::index_of(&mut self.socket, &name).step(|| format!("find {name}"))?;
            if let Some(index) = index {
                tap::set_mtu(&mut self.socket, index, found.wire.mtu)
                    .step(|| format!("set the MTU of {name}"))?;
            }
        }
        Ok(())
    }

    fn as_wanted(&self, found: Vec<Found>) -> Vec<Interface> {
        let carried = found
            .into_iter()
            .filter_map(|found| Some((self.slots.slot_of(found.index)?, found)));
        let named = carried.map(|(slot, found)| Interface {
            slot: slot_mac(slot).to_vec(),
            ..found.wire
        });
        named.collect()
    }
}

impl Drop for PodNetwork {
    fn drop(&mut self) {
        if let Some(resolver) = &self.resolver {
            resolver.abort();
        }
    }
}

/// Undoes what [`PodNetwork::sync`] made for one slot. Fine if the namespace, the interface or the tap is gone.
///
/// # Errors
/// The kernel refuses.
pub fn undo(nic: &Nic) -> Result<(), NetworkError> {
    let Ok(namespace) = Namespace::open(&nic.path) else {
        return Ok(());
    };
    if namespace.id() != nic.namespace {
        return Ok(());
    }
    let mut socket = namespace
        .enter(Rtnetlink::open)
        .step(|| "open rtnetlink".into())?;
    take_down(&mut socket, nic.slot, nic.index)
        .step(|| format!("end the redirection of {}", nic.interface))
}

fn take_down(socket: &mut Rtnetlink, slot: u8, interface: u32) -> io::Result<()> {
    mirror::end(socket, interface)?;
    match tap::index_of(socket, &tap::name(slot))? {
        Some(index) => match tap::remove(socket, index) {
            // Its last descriptor was closed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            result => result,
        },
        None => Ok(()),
    }
}

/// Readable when something has changed.
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Takes all that has been told, so that it is readable again only after something new. What exactly changed doesn't
    /// matter, and so neither that some of it was lost.
    pub fn drain(&self) {
        let mut block = [0u8; 8192];
        loop {
            match rustix::io::read(self.as_fd(), &mut block) {
                Ok(0) | Err(Errno::AGAIN) => return,
                // ENOBUFS: more was told than the socket holds.
                Ok(_) | Err(_) => {}
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket owns this descriptor, and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
