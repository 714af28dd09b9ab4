//! Requests of rtnetlink(7) to the kernel, in the network namespace that the socket was opened in.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// A socket.
#[derive(Debug)]
pub struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    /// Opens one, in the namespace of this thread.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            socket: connected(&[])?,
            sequence: 0,
        })
    }

    /// Has something done, and waits until it is.
    pub fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.request(message, NLM_F_ACK | flags).map(drop)
    }

    /// The whole of a list.
    pub fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.request(message, NLM_F_DUMP)
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

/// A socket that is told of what happens in these groups (`RTNLGRP_…`).
pub fn connected(groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    match groups {
        [] => socket.connect(&SocketAddr::new(0, 0))?,
        groups => {
            for group in groups {
                socket.add_membership(*group)?;
            }
        }
    }
    Ok(socket)
}

/// Cuts the first message off.
fn first_message(bytes: &[u8]) -> io::Result<(NetlinkMessage<RouteNetlinkMessage>, &[u8])> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let length = NetlinkBuffer::new_checked(bytes).map_err(invalid)?.length() as usize;
    let message = NetlinkMessage::deserialize(bytes).map_err(invalid)?;
    let after = bytes.get(length.next_multiple_of(4)..);
    Ok((message, after.unwrap_or_default()))
}
