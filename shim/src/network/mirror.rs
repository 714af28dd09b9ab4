//! Redirection of all frames that arrive at one interface out of another (tc-mirred(8), tc-u32(8)), by rtnetlink.

use std::io;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAction, TcActionAttribute, TcActionGeneric, TcActionMirror, TcActionMirrorOption,
        TcActionOption, TcActionType, TcAttribute, TcFilterU32, TcFilterU32Option, TcHandle,
        TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key, TcU32Selector,
        TcU32SelectorFlags,
    },
};

use super::rtnetlink::Rtnetlink;

/// Filters of others come first: what an engine has put there, a limit say, stays what it was.
const PRIORITY: u32 = 60000;
/// linux/if_ether.h.
const ETH_P_ALL: u16 = 3;
const INGRESS: &str = "ingress";

/// Both ways: what arrives at `one` leaves by `other`, and the reverse.
pub fn join(socket: &mut Rtnetlink, one: u32, other: u32) -> io::Result<()> {
    redirect(socket, one, other)?;
    redirect(socket, other, one)
}

/// Redirects what arrives at `from` to `to`. A redirection of ours that is there is replaced.
pub fn redirect(socket: &mut Rtnetlink, from: u32, to: u32) -> io::Result<()> {
    let qdisc = RouteNetlinkMessage::NewQueueDiscipline(qdisc(from));
    match socket.ask(qdisc, NLM_F_CREATE | NLM_F_EXCL) {
        // Another's, which takes our filter as well.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => forget_filter(socket, from)?,
        result => result?,
    }
    let filter = RouteNetlinkMessage::NewTrafficFilter(filter(from, to));
    socket.ask(filter, NLM_F_CREATE | NLM_F_EXCL)
}

/// Ends the redirection of what arrives at `from`. Fine if there is none.
pub fn end(socket: &mut Rtnetlink, from: u32) -> io::Result<()> {
    forget_filter(socket, from)?;
    if is_in_use(socket, from)? {
        return Ok(());
    }
    unless_absent(socket.ask(RouteNetlinkMessage::DelQueueDiscipline(qdisc(from)), 0))
}

fn forget_filter(socket: &mut Rtnetlink, from: u32) -> io::Result<()> {
    let mut message = filter_header(from);
    message.attributes = vec![TcAttribute::Kind(TcFilterU32::KIND.into())];
    unless_absent(socket.ask(RouteNetlinkMessage::DelTrafficFilter(message), 0))
}

/// Whether the ingress qdisc is another's, by its kind or by what else is in it.
fn is_in_use(socket: &mut Rtnetlink, interface: u32) -> io::Result<bool> {
    let mut message = filter_header(interface);
    message.header.info = 0;
    let filters = socket.list(RouteNetlinkMessage::GetTrafficFilter(message));
    Ok(filters.is_ok_and(|filters| !filters.is_empty()))
}

fn unless_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        // No such filter; no such qdisc or chain; no such interface.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// sch_ingress, which has this one place and number.
fn qdisc(interface: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = interface.cast_signed();
    message.header.handle = TcHandle {
        major: u16::MAX,
        minor: 0,
    };
    message.header.parent = TcHandle::INGRESS;
    message.attributes = vec![TcAttribute::Kind(INGRESS.into())];
    message
}

fn filter_header(interface: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = interface.cast_signed();
    // The same place in sch_ingress and in sch_clsact.
    message.header.parent = TcHandle {
        major: u16::MAX,
        minor: TcHandle::MIN_INGRESS,
    };
    message.header.info = PRIORITY << 16 | u32::from(ETH_P_ALL.to_be());
    message
}

fn filter(from: u32, to: u32) -> TcMessage {
    let mut mirror = TcMirror::default();
    // The frame is ours: nobody else sees it.
    mirror.generic = TcActionGeneric::default();
    mirror.generic.action = TcActionType::Stolen;
    mirror.eaction = TcMirrorActionType::EgressRedir;
    mirror.ifindex = to;
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.into()),
        TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(
            mirror,
        ))]),
    ];
    // No bit is looked at. tc-matchall(8) says it shorter, but small kernels don't have it.
    let mut everything = TcU32Selector::default();
    everything.flags = TcU32SelectorFlags::Terminal;
    everything.keys = vec![TcU32Key::default()];
    everything.nkeys = 1;
    let mut message = filter_header(from);
    message.attributes = vec![
        TcAttribute::Kind(TcFilterU32::KIND.into()),
        TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(everything)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]),
    ];
    message
}
