//! The tap beside an interface: the host's end of a NIC of the guest.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage},
};

use super::{namespace::Namespace, rtnetlink::Rtnetlink};

/// What the names of our taps begin with.
const PREFIX: &str = "vmtap";

/// The name of a slot's tap.
pub fn name(slot: u8) -> String {
    format!("{PREFIX}{slot}")
}

/// Whether a tap of this name is one of ours.
pub fn is_ours(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes the tap of a slot in `namespace`. It exists as long as its descriptor is open somewhere.
pub fn make(namespace: &Namespace, slot: u8) -> io::Result<OwnedFd> {
    let name = name(slot);
    namespace.enter(move || {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        // SAFETY: an ifreq is plain numbers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
        // The highest bit of sixteen is IFF_TUN_EXCL.
        request.ifr_ifru.ifru_flags = (flags & 0xffff) as libc::c_short;
        // SAFETY: TUNSETIFF reads and writes one ifreq, which is there for the call.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(file.into())
    })
}

/// Makes it like the interface that it stands beside, and brings it up. It says nothing of its own: no IPv6 address is
/// generated, from which the kernel would talk to the guest.
pub fn set_up(socket: &mut Rtnetlink, index: u32, mtu: u32) -> io::Result<()> {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![
        LinkAttribute::Mtu(mtu),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]),
    ];
    socket.ask(RouteNetlinkMessage::SetLink(message), 0)?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    socket.ask(RouteNetlinkMessage::SetLink(message), 0)
}

/// Sets its MTU alone.
pub fn set_mtu(socket: &mut Rtnetlink, index: u32, mtu: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::Mtu(mtu)];
    socket.ask(RouteNetlinkMessage::SetLink(message), 0)
}

/// The number of the interface of this name, if there is one.
pub fn index_of(socket: &mut Rtnetlink, name: &str) -> io::Result<Option<u32>> {
    let list = socket.list(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let named = LinkAttribute::IfName(name.to_owned());
    Ok(list.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) if link.attributes.contains(&named) => {
            Some(link.header.index)
        }
        _ => None,
    }))
}

/// Removes an interface, whoever has it open.
pub fn remove(socket: &mut Rtnetlink, index: u32) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    socket.ask(RouteNetlinkMessage::DelLink(message), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_taps_are_told_by_their_names() {
        assert!(is_ours(&name(0)) && is_ours("vmtap12"));
        assert!(!is_ours("vmtap") && !is_ours("vmtapx") && !is_ours("tap0"));
    }
}
