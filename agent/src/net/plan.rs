//! What is to be changed about one interface, decided without touching it; then each change, made.

use std::fmt;
use std::io;

use super::rtnetlink::{Link, Rtnetlink, Wish};
use super::{Address, Interface, Neighbour, Route, show};

/// One request to the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Forget(Item),
    Mac(super::Mac),
    Mtu(u32),
    /// No addresses of the guest's own making: all of them come from the host.
    NoOwnAddresses,
    Up(bool),
    Set(Item),
}

/// What an interface can have many of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    Address(Address),
    Route(Route),
    Neighbour(Neighbour),
}

/// From what was set before, if anything, to what is wanted, in the order that the kernel needs.
pub fn changes(before: Option<&Interface>, wanted: &Interface) -> Vec<Change> {
    let wanted_items = items(wanted);
    let old = before.map(items).unwrap_or_default();
    let gone = old.into_iter().rev();
    let mut changes: Vec<_> = gone
        .filter(|item| !wanted_items.contains(item))
        .map(Change::Forget)
        .collect();
    changes.extend([
        Change::Mac(wanted.mac),
        Change::Mtu(wanted.mtu),
        Change::NoOwnAddresses,
        Change::Up(wanted.up),
    ]);
    // An interface that is down takes neither routes nor, for IPv6, addresses. Setting again what is there changes nothing, and
    // brings back what went with an address or with the link.
    if wanted.up {
        changes.extend(wanted_items.into_iter().map(Change::Set));
    }
    changes
}

/// Addresses first, then what they make reachable, then what lies behind.
fn items(interface: &Interface) -> Vec<Item> {
    let addresses = interface.addresses.iter().cloned().map(Item::Address);
    let neighbours = interface.neighbours.iter().cloned().map(Item::Neighbour);
    let (behind, direct): (Vec<_>, Vec<_>) = interface
        .routes
        .iter()
        .cloned()
        .partition(|route| route.gateway.is_some());
    let routes = direct.into_iter().chain(behind).map(Item::Route);
    addresses.chain(routes).chain(neighbours).collect()
}

impl Change {
    /// Asks the kernel for it.
    pub fn make(&self, pod: &mut Rtnetlink, link: &Link) -> io::Result<()> {
        let index = link.index;
        match self {
            Self::Forget(item) => match item.apply(pod, index, Wish::Remove) {
                // It went with an address, a link, or by a container's hand.
                Err(error) if is_absence(&error) => Ok(()),
                result => result,
            },
            Self::Mac(mac) if link.mac == Some(*mac) => Ok(()),
            Self::Mac(mac) => pod.set_mac(index, mac),
            Self::Mtu(mtu) => pod.set_mtu(index, *mtu),
            Self::NoOwnAddresses => pod.no_own_addresses(index),
            Self::Up(up) => pod.set_up(index, *up),
            Self::Set(item) => item.apply(pod, index, Wish::Set),
        }
    }
}

impl Item {
    fn apply(&self, pod: &mut Rtnetlink, index: u32, wish: Wish) -> io::Result<()> {
        match self {
            Self::Address(address) => pod.address(index, address, wish),
            Self::Route(route) => pod.route(index, route, wish),
            Self::Neighbour(neighbour) => pod.neighbour(index, neighbour, wish),
        }
    }
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRNOTAVAIL | libc::ESRCH | libc::ENOENT | libc::ENODEV)
    )
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forget(item) => write!(f, "remove {item}"),
            Self::Mac(mac) => write!(f, "set the MAC address {}", show(mac)),
            Self::Mtu(mtu) => write!(f, "set the MTU {mtu}"),
            Self::NoOwnAddresses => write!(f, "switch address generation off"),
            Self::Up(true) => write!(f, "bring it up"),
            Self::Up(false) => write!(f, "bring it down"),
            Self::Set(item) => write!(f, "add {item}"),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(a) => write!(f, "the address {}/{}", a.ip, a.prefix_length),
            Self::Route(r) => {
                write!(f, "the route to {}/{}", r.destination, r.prefix_length)?;
                match r.gateway {
                    Some(gateway) => write!(f, " via {gateway}"),
                    None => Ok(()),
                }
            }
            Self::Neighbour(n) => write!(f, "the neighbour {}", n.ip),
        }
    }
}
