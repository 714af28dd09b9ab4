//! The pod's network: NICs out of their slots, with the names, addresses and routes that the host says.
//!
//! ```text
//!  attic (the kernel's first namespace)       the pod's network namespace
//!    slot0, slot1, …: NICs without a wire  ─►   lo, eth0, … : what containers see
//!                                          ◄─   an interface that has gone
//! ```
//! So a container sees the interfaces that it would see on the host, and no spare ones.

mod attic;
mod parse;
mod plan;
mod resolver;
mod rtnetlink;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;

pub use attic::Attic;
pub use parse::parse;
pub use resolver::Resolver;
use rtnetlink::{Link, Rtnetlink};

/// A MAC address.
pub type Mac = [u8; 6];

/// One interface as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The address with which the NIC came.
    pub slot: Mac,
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    pub up: bool,
    pub addresses: Vec<Address>,
    pub routes: Vec<Route>,
    pub neighbours: Vec<Neighbour>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix_length: u8,
    pub broadcast: Option<IpAddr>,
    pub peer: Option<IpAddr>,
    /// As rtnetlink(7) numbers it.
    pub scope: u8,
    pub no_prefix_route: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub destination: IpAddr,
    pub prefix_length: u8,
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    pub scope: u8,
    pub onlink: bool,
    /// 0 for the kernel's choice, here and below.
    pub metric: u32,
    pub mtu: u32,
    pub advertised_mss: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub ip: IpAddr,
    pub mac: Mac,
}

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("{step}: {source}")]
    Step {
        /// What was being done, and to what.
        step: String,
        source: io::Error,
    },
    /// The VM has no NIC of that slot.
    #[error("no NIC has the address {}", show(.0))]
    NoNic(Mac),
}

/// Names the step that an error belongs to.
trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, NetError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, NetError> {
        self.map_err(|source| NetError::Step {
            step: step(),
            source,
        })
    }
}

/// A MAC address as people write it.
fn show(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What was set so far.
#[derive(Debug)]
pub struct Network {
    attic: Option<Attic>,
    /// By slot. One whose setting failed half-way is not here, so the next time all of it is set.
    set: HashMap<Mac, Interface>,
}

impl Network {
    /// What a pod has whose NICs, if it has any, are in the attic.
    pub fn new(attic: Option<Attic>) -> Self {
        Self {
            attic,
            set: HashMap::new(),
        }
    }

    /// Makes the pod's interfaces those of `wanted`; the slots of the others go, or stay, in the attic.
    ///
    /// # Errors
    /// The first step that failed; what came before it is done.
    pub fn apply(&mut self, wanted: &[Interface]) -> Result<(), NetError> {
        let mut pod = Rtnetlink::open().step(|| "open rtnetlink".into())?;
        let is_wanted = |link: &Link| wanted.iter().any(|i| Some(i.slot) == link.permanent);
        // Before any name is given: it may be that of one that goes.
        for link in nics(&mut pod)? {
            if let Some(attic) = &mut self.attic
                && !is_wanted(&link)
            {
                attic
                    .take(&mut pod, &link)
                    .step(|| format!("put {} away", link.name))?;
                self.set.retain(|slot, _| Some(*slot) != link.permanent);
            }
        }
        self.bring(wanted, &mut pod)?;
        for interface in wanted {
            let before = self.set.remove(&interface.slot);
            if before.as_ref() != Some(interface) {
                let link = find(&nics(&mut pod)?, interface)?;
                for change in plan::changes(before.as_ref(), interface) {
                    change
                        .make(&mut pod, &link)
                        .step(|| format!("{}: {change}", interface.name))?;
                }
            }
            self.set.insert(interface.slot, interface.clone());
        }
        Ok(())
    }

    /// Out of the attic with what is wanted, and every name to its interface.
    fn bring(&mut self, wanted: &[Interface], pod: &mut Rtnetlink) -> Result<(), NetError> {
        if let Some(attic) = &mut self.attic {
            for interface in wanted {
                attic
                    .give(interface.slot)
                    .step(|| format!("fetch {}", interface.name))?;
            }
        }
        let links = nics(pod)?;
        let mut misnamed = Vec::new();
        for interface in wanted {
            let link = find(&links, interface)?;
            if link.name != interface.name {
                // Two may be about to swap names.
                pod.rename(link.index, &format!("vmboxtmp{}", link.index))
                    .step(|| format!("rename {}", link.name))?;
                misnamed.push((link.index, &interface.name));
            }
        }
        for (index, name) in misnamed {
            pod.rename(index, name).step(|| format!("name {name}"))?;
        }
        Ok(())
    }
}

/// The links that are NICs of slots.
fn nics(socket: &mut Rtnetlink) -> Result<Vec<Link>, NetError> {
    let links = socket.links().step(|| "list interfaces".into())?;
    Ok(links.into_iter().filter(Link::is_slot).collect())
}

fn find(links: &[Link], interface: &Interface) -> Result<Link, NetError> {
    let found = links
        .iter()
        .find(|link| link.permanent == Some(interface.slot));
    found.cloned().ok_or(NetError::NoNic(interface.slot))
}

#[cfg(test)]
mod tests;
