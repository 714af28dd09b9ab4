//! One connection together with its host socket: bytes cross here, both ways, without a copy in between
//! unless the host socket is full.

use std::os::fd::RawFd;
use std::time::Instant;

use super::buffers::Buffers;
use super::connection::Connection;
use super::packet::{HEADER_LEN, Header};
use super::stream::{Received, Stream};

use crate::ram::Ram;

/// What became of a link after something happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// It goes on.
    Stays,
    /// It goes on until the guest's RST, for a limited time.
    AwaitsReset,
    /// Done: tell the guest by RST, then forget it.
    Reset,
    /// Done, and the guest knows.
    Ends,
}

/// A connection and its socket.
#[derive(Debug)]
pub struct Link {
    state: Connection,
    stream: Stream,
    /// Epoll said so and no read has come back empty since (edge-triggered).
    readable: bool,
    /// The guest still knows this connection.
    attached: bool,
    host_gone: bool,
    /// It stands in the mux's list of links with something for the guest.
    pub queued: bool,
    /// Epoll watches for room in the socket.
    pub write_watched: bool,
    /// When it ends without the guest's RST; set by the mux.
    pub deadline: Option<Instant>,
}

impl Link {
    /// Joins a connection and a non-blocking socket.
    pub fn new(state: Connection, stream: Stream) -> Self {
        Self {
            state,
            stream,
            readable: true,
            attached: true,
            host_gone: false,
            queued: false,
            write_watched: false,
            deadline: None,
        }
    }

    /// The connection's state.
    pub fn state(&mut self) -> &mut Connection {
        &mut self.state
    }

    /// The socket, for epoll.
    pub fn fd(&self) -> RawFd {
        self.stream.fd()
    }

    /// Whether epoll should tell of room in the socket.
    pub fn wants_room(&self) -> bool {
        self.stream.backlog_len() > 0
    }

    /// Whether [`Link::fill`] may have a packet for the guest.
    pub fn has_packet(&self) -> bool {
        self.attached
            && (self.state.has_control()
                || (self.readable && self.state.wants_host_bytes() && self.state.credit() > 0))
    }

    /// Puts the next packet for the guest into `buffers`; returns its length, header included, in bytes.
    pub fn fill(&mut self, memory: &Ram, buffers: &Buffers) -> Option<u32> {
        loop {
            if !self.attached {
                return None;
            }
            if let Some(header) = self.state.take_control() {
                buffers.set_header(memory, &header);
                return Some(HEADER_LEN as u32);
            }
            if !self.readable || !self.state.wants_host_bytes() {
                return None;
            }
            let room = buffers.payload_len().min(self.state.credit() as usize);
            if room == 0 {
                return None;
            }
            match self.stream.read(buffers.payload(memory, room)) {
                Received::Bytes(count) => {
                    let header = self.state.send(count);
                    buffers.set_header(memory, &header);
                    self.note_stall();
                    return Some(HEADER_LEN as u32 + count);
                }
                Received::Empty => {
                    self.readable = false;
                    return None;
                }
                Received::Eof => {
                    self.readable = false;
                    self.state.host_done();
                }
            }
        }
    }

    /// Asks for credit where bytes wait for it.
    fn note_stall(&mut self) {
        if self.readable && self.state.wants_host_bytes() && self.state.credit() == 0 {
            self.state.stalled();
        }
    }

    /// Takes the payload of a packet, which the connection's credit has admitted.
    pub fn take_payload(&mut self, memory: &Ram, buffers: &Buffers, len: u32) {
        if self.host_gone {
            self.state.forward(len);
            return;
        }
        let before = self.stream.backlog_len();
        match self.stream.write(buffers.payload(memory, len as usize)) {
            Ok(count) => self.state.forward(count),
            Err(_) => {
                // What was in the backlog is counted by `lose_host`; the rest of this packet here.
                let kept = self.stream.backlog_len().saturating_sub(before);
                self.state
                    .forward(len.saturating_sub(u32::try_from(kept).unwrap_or(len)));
                self.lose_host();
            }
        }
    }

    /// The guest accepted this host program's connection.
    pub fn opened(&mut self) {
        let line = format!("OK {}\n", self.state.key().host_port);
        if self.stream.write_line(&line).is_err() {
            self.lose_host();
        }
    }

    /// The guest does not read any more.
    pub fn guest_deaf(&mut self) {
        self.stream.close_read();
    }

    /// The guest has forgotten this connection; what it sent before still goes to the host.
    pub fn detach(&mut self) {
        self.attached = false;
        self.stream.close_read();
    }

    /// Epoll reports the socket.
    pub fn socket_ready(&mut self, readable: bool, writable: bool, hung_up: bool) {
        self.readable |= readable || hung_up;
        if hung_up {
            self.lose_host();
        } else if writable {
            match self.stream.flush() {
                Ok(count) => self.state.forward(count),
                Err(_) => self.lose_host(),
            }
        }
        self.note_stall();
    }

    fn lose_host(&mut self) {
        self.host_gone = true;
        self.state.host_deaf();
        let dropped = self.stream.forget();
        self.state.forward(dropped);
    }

    /// Does what follows from the state on the host's side, and says whether the link goes on.
    pub fn settle(&mut self) -> Outlook {
        let flushed = self.stream.backlog_len() == 0;
        if !self.attached {
            return if flushed {
                Outlook::Ends
            } else {
                Outlook::Stays
            };
        }
        if self.state.is_requested() && self.host_gone {
            // The host program gave up. The guest's RESPONSE, if one comes, will be refused.
            return Outlook::Ends;
        }
        if self.state.guest_done() && flushed {
            self.stream.close_write();
        }
        if self.state.is_finished(flushed) {
            return Outlook::Reset;
        }
        if self.state.awaits_reset() {
            return Outlook::AwaitsReset;
        }
        Outlook::Stays
    }

    /// The packet that tells the guest that this is over.
    pub fn reset(&mut self) -> Header {
        self.state.reset()
    }
}
