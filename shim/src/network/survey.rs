//! What an engine has made in a network namespace: its interfaces, with all that the guest is to have of them.

use std::{io, net::IpAddr};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteProtocol, RouteType,
    },
};
use vmbox_protocol::agent::{Interface, InterfaceAddress, InterfaceNeighbour, InterfaceRoute};

use super::{rtnetlink::Rtnetlink, tap};

/// An interface that a guest can have. Its `wire.slot` is empty: that is decided later.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its number in the namespace.
    pub index: u32,
    /// What the guest is to have.
    pub wire: Interface,
}

/// Everything in a namespace, as the kernel lists it.
#[derive(Debug, Default)]
pub struct Lists {
    pub links: Vec<LinkMessage>,
    pub addresses: Vec<AddressMessage>,
    pub routes: Vec<RouteMessage>,
    pub neighbours: Vec<NeighbourMessage>,
}

impl Lists {
    /// Asks the kernel.
    pub fn read(socket: &mut Rtnetlink) -> io::Result<Self> {
        let mut lists = Self::default();
        let requests = [
            RouteNetlinkMessage::GetLink(LinkMessage::default()),
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            RouteNetlinkMessage::GetRoute(RouteMessage::default()),
            RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default()),
        ];
        for request in requests {
            for answer in socket.list(request)? {
                match answer {
                    RouteNetlinkMessage::NewLink(link) => lists.links.push(link),
                    RouteNetlinkMessage::NewAddress(address) => lists.addresses.push(address),
                    RouteNetlinkMessage::NewRoute(route) => lists.routes.push(route),
                    RouteNetlinkMessage::NewNeighbour(neighbour) => {
                        lists.neighbours.push(neighbour);
                    }
                    _ => {}
                }
            }
        }
        Ok(lists)
    }

    /// The interfaces that a guest can have, in the order of their numbers: Ethernet, but for taps of ours and what is a
    /// part of another interface. One that is down is not an engine's (some tunnels come with every namespace), unless it was
    /// `known` before.
    pub fn interfaces(&self, known: &[u32]) -> Vec<Found> {
        let mut found: Vec<Found> = self
            .links
            .iter()
            .filter(|link| is_up(link) || known.contains(&link.header.index))
            .filter_map(|link| self.interface(link))
            .collect();
        found.sort_by_key(|found| found.index);
        found
    }

    fn interface(&self, link: &LinkMessage) -> Option<Found> {
        let index = link.header.index;
        let is_loopback = link.header.flags.contains(LinkFlags::Loopback);
        if is_loopback || link.header.link_layer_type != LinkLayerType::Ether {
            return None;
        }
        let mut wire = Interface {
            up: is_up(link),
            ..Default::default()
        };
        let mut is_tun = false;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => wire.name.clone_from(name),
                LinkAttribute::Address(mac) => wire.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => wire.mtu = *mtu,
                LinkAttribute::Controller(_) => return None,
                LinkAttribute::LinkInfo(infos) => {
                    is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
                }
                _ => {}
            }
        }
        if wire.mac.len() != 6 || (is_tun && tap::is_ours(&wire.name)) {
            return None;
        }
        let of = |of: u32| of == index;
        let addresses = self.addresses.iter().filter(|a| of(a.header.index));
        wire.addresses = addresses.filter_map(address).collect();
        wire.routes = self
            .routes
            .iter()
            .filter_map(|message| route(message, index))
            .collect();
        let neighbours = self.neighbours.iter().filter(|n| of(n.header.ifindex));
        wire.neighbours = neighbours.filter_map(neighbour).collect();
        Some(Found { index, wire })
    }
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

/// None for one that the kernel has found to be another's.
fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut address) = (None, None);
    let mut wire = InterfaceAddress {
        prefix_length: message.header.prefix_len.into(),
        scope: u8::from(message.header.scope).into(),
        ..Default::default()
    };
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Broadcast(ip) => wire.broadcast = ip.octets().to_vec(),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    if flags.contains(AddressFlags::Dadfailed) {
        return None;
    }
    wire.no_prefix_route = flags.contains(AddressFlags::Noprefixroute);
    // Of a point-to-point link, `address` is the other end; else both are the same, or IPv6 has `address` alone.
    let own = local.or(address)?;
    wire.peer = address
        .filter(|address| *address != own)
        .map(octets)
        .unwrap_or_default();
    wire.address = octets(own);
    Some(wire)
}

/// None for what comes with addresses, is learned from routers, or is of another interface or table.
fn route(message: &RouteMessage, index: u32) -> Option<InterfaceRoute> {
    let header = &message.header;
    let learned = [RouteProtocol::Kernel, RouteProtocol::Ra];
    if header.kind != RouteType::Unicast
        || learned.contains(&header.protocol)
        || header.flags.contains(RouteFlags::Cloned)
    {
        return None;
    }
    let unspecified = match header.address_family {
        AddressFamily::Inet => vec![0; 4],
        AddressFamily::Inet6 => vec![0; 16],
        _ => return None,
    };
    let mut wire = InterfaceRoute {
        destination: unspecified,
        prefix_length: header.destination_prefix_length.into(),
        scope: u8::from(header.scope).into(),
        onlink: header.flags.contains(RouteFlags::Onlink),
        ..Default::default()
    };
    let (mut table, mut interface) = (u32::from(header.table), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(ip) => wire.destination = route_octets(ip)?,
            RouteAttribute::Gateway(ip) => wire.gateway = route_octets(ip)?,
            RouteAttribute::PrefSource(ip) => wire.source = route_octets(ip)?,
            RouteAttribute::Oif(oif) => interface = Some(*oif),
            RouteAttribute::Priority(metric) => wire.metric = *metric,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Metrics(metrics) => metrics.iter().for_each(|m| match m {
                RouteMetric::Mtu(mtu) => wire.mtu = *mtu,
                RouteMetric::Advmss(mss) => wire.advertised_mss = *mss,
                _ => {}
            }),
            _ => {}
        }
    }
    let is_ours = interface == Some(index) && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    is_ours.then_some(wire)
}

/// Those that somebody has set; the others the guest finds out by itself.
fn neighbour(message: &NeighbourMessage) -> Option<InterfaceNeighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut wire = InterfaceNeighbour::default();
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                wire.address = ip.octets().to_vec();
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                wire.address = ip.octets().to_vec();
            }
            NeighbourAttribute::LinkLayerAddress(mac) => wire.mac.clone_from(mac),
            _ => {}
        }
    }
    (!wire.address.is_empty() && wire.mac.len() == 6).then_some(wire)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn route_octets(address: &RouteAddress) -> Option<Vec<u8>> {
    match address {
        RouteAddress::Inet(ip) => Some(ip.octets().to_vec()),
        RouteAddress::Inet6(ip) => Some(ip.octets().to_vec()),
        _ => None,
    }
}
