//! The few requests of rtnetlink(7) that the agent makes, each waiting for the kernel's answer.

use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkBuffer,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
    RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::{Address, Mac, Neighbour, Route};

/// The addresses of slots begin with this; the last byte is the slot's number.
const SLOT_PREFIX: [u8; 5] = vmbox_protocol::SLOT_MAC_PREFIX;

/// A link of the kernel's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    /// The address with which the NIC came.
    pub permanent: Option<Mac>,
}

impl Link {
    /// Whether it is the NIC of a slot.
    pub fn is_slot(&self) -> bool {
        self.slot_number().is_some()
    }

    pub fn slot_number(&self) -> Option<u8> {
        let [prefix @ .., number] = self.permanent?;
        (prefix == SLOT_PREFIX).then_some(number)
    }
}

/// What is to become of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Set,
    Remove,
}

/// A socket in the network namespace that it was opened in.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    pub fn links(&mut self) -> io::Result<Vec<Link>> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request(request, NLM_F_DUMP)?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(link(message)),
            _ => None,
        });
        Ok(links.collect())
    }

    pub fn rename(&mut self, index: u32, name: &str) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::IfName(name.to_owned())])
    }

    /// Moves a link to another network namespace, under a name that is free there.
    pub fn move_to(&mut self, index: u32, namespace: RawFd, name: &str) -> io::Result<()> {
        let there = LinkAttribute::NetNsFd(namespace);
        self.set_link(index, vec![there, LinkAttribute::IfName(name.to_owned())])
    }

    pub fn set_mac(&mut self, index: u32, mac: &Mac) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::Address(mac.to_vec())])
    }

    pub fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::Mtu(mtu)])
    }

    pub fn no_own_addresses(&mut self, index: u32) -> io::Result<()> {
        let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let inet6 = AfSpecUnspec::Inet6(vec![none]);
        self.set_link(index, vec![LinkAttribute::AfSpecUnspec(vec![inet6])])
    }

    pub fn set_up(&mut self, index: u32, up: bool) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.change_mask = LinkFlags::Up;
        message.header.flags.set(LinkFlags::Up, up);
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    pub fn address(&mut self, index: u32, address: &Address, wish: Wish) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address.ip);
        message.header.prefix_len = address.prefix_length;
        message.header.scope = address.scope.into();
        message.header.index = index;
        let mut flags = AddressFlags::Permanent;
        if address.ip.is_ipv6() {
            // The host has found out that nobody else has it.
            flags |= AddressFlags::Nodad;
            message.header.flags = AddressHeaderFlags::Nodad;
        }
        flags.set(AddressFlags::Noprefixroute, address.no_prefix_route);
        message.attributes = vec![
            AddressAttribute::Local(address.ip),
            AddressAttribute::Address(address.peer.unwrap_or(address.ip)),
            AddressAttribute::Flags(flags),
        ];
        if let Some(IpAddr::V4(broadcast)) = address.broadcast {
            message
                .attributes
                .push(AddressAttribute::Broadcast(broadcast));
        }
        match wish {
            Wish::Set => self.ask(
                RouteNetlinkMessage::NewAddress(message),
                NLM_F_CREATE | NLM_F_REPLACE,
            ),
            Wish::Remove => self.ask(RouteNetlinkMessage::DelAddress(message), 0),
        }
    }

    pub fn route(&mut self, index: u32, route: &Route, wish: Wish) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.destination);
        message.header.destination_prefix_length = route.prefix_length;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = route.scope.into();
        message.header.kind = RouteType::Unicast;
        message.header.flags.set(RouteFlags::Onlink, route.onlink);
        message.attributes = route_attributes(index, route);
        match wish {
            Wish::Set => self.ask(
                RouteNetlinkMessage::NewRoute(message),
                NLM_F_CREATE | NLM_F_REPLACE,
            ),
            Wish::Remove => self.ask(RouteNetlinkMessage::DelRoute(message), 0),
        }
    }

    pub fn neighbour(&mut self, index: u32, neighbour: &Neighbour, wish: Wish) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(neighbour.ip);
        message.header.ifindex = index;
        message.header.state = NeighbourState::Permanent;
        let ip = match neighbour.ip {
            IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
            IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(ip),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.to_vec()),
        ];
        match wish {
            Wish::Set => self.ask(
                RouteNetlinkMessage::NewNeighbour(message),
                NLM_F_CREATE | NLM_F_REPLACE,
            ),
            Wish::Remove => self.ask(RouteNetlinkMessage::DelNeighbour(message), 0),
        }
    }

    fn set_link(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.ask(RouteNetlinkMessage::SetLink(message), 0)
    }

    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | flags).map(drop)
    }

    /// Sends a request and collects the answers, up to the acknowledgement or the end of the list.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let (message, after) = first_message(rest)?;
                rest = after;
                match message.payload {
                    _ if message.header.sequence_number != self.sequence => {}
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    _ => {}
                }
            }
        }
    }
}

/// Cuts the first message off.
fn first_message(bytes: &[u8]) -> io::Result<(NetlinkMessage<RouteNetlinkMessage>, &[u8])> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let length = NetlinkBuffer::new_checked(bytes).map_err(invalid)?.length() as usize;
    let message = NetlinkMessage::deserialize(bytes).map_err(invalid)?;
    let after = bytes.get(length.next_multiple_of(4)..);
    Ok((message, after.unwrap_or_default()))
}

fn link(message: LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        permanent: None,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::PermAddress(mac) => link.permanent = mac.try_into().ok(),
            _ => {}
        }
    }
    link
}

fn route_attributes(index: u32, route: &Route) -> Vec<RouteAttribute> {
    let mut attributes = vec![RouteAttribute::Oif(index)];
    if route.prefix_length > 0 {
        let destination = RouteAddress::from(route.destination);
        attributes.push(RouteAttribute::Destination(destination));
    }
    attributes.extend(route.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
    attributes.extend(route.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
    if route.metric > 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    let metrics = [
        (route.mtu, RouteMetric::Mtu as fn(u32) -> RouteMetric),
        (route.advertised_mss, RouteMetric::Advmss),
    ];
    let metrics: Vec<_> = metrics
        .into_iter()
        .filter(|(value, _)| *value > 0)
        .map(|(value, metric)| metric(value))
        .collect();
    if !metrics.is_empty() {
        attributes.push(RouteAttribute::Metrics(metrics));
    }
    attributes
}

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}
