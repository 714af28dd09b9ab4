//! The host's request, as types that can't be wrong.

use std::net::IpAddr;

use vmbox_protocol::agent::{
    Interface as Wire, InterfaceAddress, InterfaceNeighbour, InterfaceRoute, NetworkRequest,
};

use super::{Address, Interface, Mac, Neighbour, Route};

/// IFNAMSIZ, without the zero at the end.
const NAME_BYTES_MAX: usize = 15;

/// A field of the request can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} of interface {interface:?} can't be used")]
pub struct BadNetwork {
    interface: String,
    field: &'static str,
}

/// Reads a request.
///
/// # Errors
/// A field has the wrong length or an impossible value.
pub fn parse(request: &NetworkRequest) -> Result<Vec<Interface>, BadNetwork> {
    request.interfaces.iter().map(interface).collect()
}

fn interface(wire: &Wire) -> Result<Interface, BadNetwork> {
    let bad = |field| BadNetwork {
        interface: wire.name.clone(),
        field,
    };
    // What dev_valid_name of the kernel wants.
    let name_is_good = (1..=NAME_BYTES_MAX).contains(&wire.name.len())
        && wire.name != "."
        && wire.name != ".."
        && !wire
            .name
            .contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    let all = |field, good: bool| if good { Ok(()) } else { Err(bad(field)) };
    all("name", name_is_good)?;
    Ok(Interface {
        slot: mac(&wire.slot).ok_or_else(|| bad("slot"))?,
        name: wire.name.clone(),
        mac: mac(&wire.mac).ok_or_else(|| bad("mac"))?,
        mtu: wire.mtu,
        up: wire.up,
        addresses: each(&wire.addresses, address).ok_or_else(|| bad("addresses"))?,
        routes: each(&wire.routes, route).ok_or_else(|| bad("routes"))?,
        neighbours: each(&wire.neighbours, neighbour).ok_or_else(|| bad("neighbours"))?,
    })
}

fn each<W, T>(wire: &[W], one: impl Fn(&W) -> Option<T>) -> Option<Vec<T>> {
    wire.iter().map(one).collect()
}

fn address(wire: &InterfaceAddress) -> Option<Address> {
    let ip = ip(&wire.address)?;
    let broadcast = optional(&wire.broadcast)?;
    Some(Address {
        ip,
        prefix_length: prefix_of(ip, wire.prefix_length)?,
        broadcast: same_family(ip, broadcast)?,
        peer: same_family(ip, optional(&wire.peer)?)?,
        scope: u8::try_from(wire.scope).ok()?,
        no_prefix_route: wire.no_prefix_route,
    })
}

fn route(wire: &InterfaceRoute) -> Option<Route> {
    let destination = ip(&wire.destination)?;
    Some(Route {
        destination,
        prefix_length: prefix_of(destination, wire.prefix_length)?,
        gateway: same_family(destination, optional(&wire.gateway)?)?,
        source: same_family(destination, optional(&wire.source)?)?,
        scope: u8::try_from(wire.scope).ok()?,
        onlink: wire.onlink,
        metric: wire.metric,
        mtu: wire.mtu,
        advertised_mss: wire.advertised_mss,
    })
}

fn neighbour(wire: &InterfaceNeighbour) -> Option<Neighbour> {
    Some(Neighbour {
        ip: ip(&wire.address)?,
        mac: mac(&wire.mac)?,
    })
}

fn mac(bytes: &[u8]) -> Option<Mac> {
    bytes.try_into().ok()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
}

fn optional(bytes: &[u8]) -> Option<Option<IpAddr>> {
    match bytes {
        [] => Some(None),
        bytes => ip(bytes).map(Some),
    }
}

fn same_family(one: IpAddr, other: Option<IpAddr>) -> Option<Option<IpAddr>> {
    match other {
        Some(other) if other.is_ipv4() != one.is_ipv4() => None,
        other => Some(other),
    }
}

fn prefix_of(ip: IpAddr, length: u32) -> Option<u8> {
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    u8::try_from(length).ok().filter(|bits| *bits <= longest)
}
