//! One stream connection as the host side sees it, without any I/O: its life and its credit.
//!
//! ```text
//!  host dials                      RESPONSE
//!  ─────────► Requested ───────────────────────────► Established ◄───────────── guest's REQUEST
//!                │ RST, host gone                        │            (we answer RESPONSE)
//!                ▼                                       │
//!               end          ┌───────────────────────────┼──────────────────────────────┐
//!                     guest: SHUTDOWN(both)       each side is done sending:      host gone:
//!                     or RST                      guest by SHUTDOWN(SEND), flushed   SHUTDOWN(both),
//!                            │                    host by EOF, SHUTDOWN(SEND)        wait for RST ≤ 8 s
//!                            ▼                           ▼                              ▼
//!                     detached: we answer RST,         RST, end                      RST, end
//!                     what was accepted still flows
//!                     to the host, then end
//! ```
//!
//! Linux (`virtio_transport_common.c`) is the peer to be understood: `close()` sends SHUTDOWN(both) and waits
//! 8 s for an RST, then sends one itself and keeps no promise to anyone; an RST never takes back bytes
//! that were received before. So a guest's RST must not drop what we have accepted, either.

use super::packet::{
    HOST_CID, Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, TYPE_STREAM, op,
};

/// What the guest may have in flight to one host socket that does not read, in bytes.
pub const BUF_ALLOC: u32 = 128 * 1024;
/// Free space is told once this much has built up, so that credit packets stay rare.
const TELL_AFTER: u32 = BUF_ALLOC / 2;
/// The most payload put into one packet, in bytes (Linux: `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
const MAX_PAYLOAD: u32 = 64 * 1024;

/// Names a connection: one guest port and one host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub host_port: u32,
    pub guest_port: u32,
}

impl Key {
    /// The connection that a packet from the guest belongs to.
    pub fn of(header: &Header) -> Self {
        Self {
            host_port: header.dst_port,
            guest_port: header.src_port,
        }
    }
}

/// What a packet from the guest asks of the connection's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing beyond the new state.
    Nothing,
    /// The guest accepted: tell the host program.
    Opened,
    /// The payload is within its credit: take all of it.
    Payload,
    /// The guest will not read any more: nobody needs what the host still writes.
    GuestDeaf,
    /// The guest has let go: forget its ports, deliver what was accepted, answer with RST if `reset`.
    Detach { reset: bool },
    /// The guest broke the protocol: RST and end at once.
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Requested,
    Established,
}

/// The state of one connection. Counters are modulo 2³², as on the wire.
#[derive(Debug)]
pub struct Connection {
    key: Key,
    guest_cid: u64,
    phase: Phase,
    /// REQUEST or RESPONSE is still to be sent.
    greet: bool,

    /// Payload bytes that came from the guest.
    received: u32,
    /// Of those, how many have left for the host socket.
    forwarded: u32,
    /// The last `forwarded` that the guest was told.
    told: u32,
    /// The guest asked for our credit.
    asked: bool,
    /// The guest sent SHUTDOWN(SEND).
    guest_done: bool,

    /// Payload bytes that went to the guest.
    sent: u32,
    peer_buf_alloc: u32,
    peer_fwd_cnt: u32,
    /// There is something to send but no credit; the guest is asked once for each stall.
    stall: Stall,
    /// The guest sent SHUTDOWN(RCV).
    guest_deaf: bool,

    /// SHUTDOWN flags that are true of the host, and those that the guest was sent.
    host_shutdown: u32,
    shutdown_sent: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stall {
    No,
    Ask,
    Asked,
}

impl Connection {
    /// The host wants to reach a guest port: REQUEST is the first thing to send.
    pub fn requested(key: Key, guest_cid: u64) -> Self {
        Self {
            key,
            guest_cid,
            phase: Phase::Requested,
            greet: true,
            received: 0,
            forwarded: 0,
            told: 0,
            asked: false,
            guest_done: false,
            sent: 0,
            peer_buf_alloc: 0,
            peer_fwd_cnt: 0,
            stall: Stall::No,
            guest_deaf: false,
            host_shutdown: 0,
            shutdown_sent: 0,
        }
    }

    /// The guest's REQUEST was accepted: RESPONSE is the first thing to send.
    pub fn accepted(request: &Header) -> Self {
        let mut connection = Self::requested(Key::of(request), request.src_cid);
        connection.phase = Phase::Established;
        connection.learn_credit(request);
        connection
    }

    /// Its ports.
    pub fn key(&self) -> Key {
        self.key
    }

    /// Still waiting for the guest's RESPONSE.
    pub fn is_requested(&self) -> bool {
        self.phase == Phase::Requested
    }

    /// A packet of the guest for this connection; not for a REQUEST, which starts a new one.
    pub fn receive(&mut self, header: &Header) -> Effect {
        self.learn_credit(header);
        match (self.phase, header.op) {
            (_, op::RST) => Effect::Detach { reset: false },
            (Phase::Requested, op::RESPONSE) if !self.greet => {
                self.phase = Phase::Established;
                Effect::Opened
            }
            (Phase::Requested, _) => Effect::Reset,
            (Phase::Established, op::RW) => self.receive_payload(header.len),
            (Phase::Established, op::SHUTDOWN) => self.receive_shutdown(header.flags),
            (Phase::Established, op::CREDIT_REQUEST) => {
                self.asked = true;
                Effect::Nothing
            }
            // Like Linux, which has no other answer to an operation out of place either.
            (Phase::Established, _) => Effect::Nothing,
        }
    }

    fn learn_credit(&mut self, header: &Header) {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        if self.credit() > 0 {
            self.stall = Stall::No;
        }
    }

    fn receive_payload(&mut self, len: u32) -> Effect {
        let free = BUF_ALLOC.saturating_sub(self.received.wrapping_sub(self.forwarded));
        if self.guest_done || len > free {
            return Effect::Reset;
        }
        self.received = self.received.wrapping_add(len);
        Effect::Payload
    }

    fn receive_shutdown(&mut self, flags: u32) -> Effect {
        self.guest_done |= flags & SHUTDOWN_SEND != 0;
        self.guest_deaf |= flags & SHUTDOWN_RCV != 0;
        self.give_up_if_both_deaf();
        match (self.guest_done, self.guest_deaf) {
            (true, true) => Effect::Detach { reset: true },
            (false, true) => Effect::GuestDeaf,
            (_, false) => Effect::Nothing,
        }
    }

    /// `count` bytes have left for the host socket (or were dropped because it is gone).
    pub fn forward(&mut self, count: u32) {
        self.forwarded = self.forwarded.wrapping_add(count);
    }

    /// Whether the guest will send no more, so that end of file follows the last byte we hold.
    pub fn guest_done(&self) -> bool {
        self.guest_done
    }

    /// Whether bytes from the host would be of any use to the guest.
    pub fn wants_host_bytes(&self) -> bool {
        self.phase == Phase::Established
            && !self.guest_deaf
            && self.host_shutdown & SHUTDOWN_SEND == 0
    }

    /// How many bytes may be sent to the guest in one packet now. What the guest claims is bounded by nothing
    /// but this: an impossible `fwd_cnt` reads as no credit.
    pub fn credit(&self) -> u32 {
        let in_flight = self.sent.wrapping_sub(self.peer_fwd_cnt);
        self.peer_buf_alloc
            .saturating_sub(in_flight)
            .min(MAX_PAYLOAD)
    }

    /// There were bytes for the guest, but no credit.
    pub fn stalled(&mut self) {
        if self.stall == Stall::No {
            self.stall = Stall::Ask;
        }
    }

    /// The header of a packet with `count` bytes that were just read for the guest.
    pub fn send(&mut self, count: u32) -> Header {
        self.sent = self.sent.wrapping_add(count);
        self.header(op::RW, count, 0)
    }

    /// The host socket reached end of file, and all that was before it has been sent.
    pub fn host_done(&mut self) {
        self.host_shutdown |= SHUTDOWN_SEND;
    }

    /// The host socket is gone: nobody will read what the guest writes.
    pub fn host_deaf(&mut self) {
        self.host_shutdown |= SHUTDOWN_RCV;
        self.give_up_if_both_deaf();
    }

    /// With nobody left to read on either side, the end of file that would finish this is never read either.
    fn give_up_if_both_deaf(&mut self) {
        if self.guest_deaf && self.host_shutdown & SHUTDOWN_RCV != 0 {
            self.host_shutdown |= SHUTDOWN_SEND;
        }
    }

    /// Whether [`Connection::take_control`] has a packet.
    pub fn has_control(&self) -> bool {
        self.greet
            || (self.phase == Phase::Established
                && (self.host_shutdown != self.shutdown_sent
                    || self.owes_credit()
                    || self.stall == Stall::Ask))
    }

    /// The next packet without payload, if one is due.
    pub fn take_control(&mut self) -> Option<Header> {
        if !self.has_control() {
            return None;
        }
        if std::mem::take(&mut self.greet) {
            let op = match self.phase {
                Phase::Requested => op::REQUEST,
                Phase::Established => op::RESPONSE,
            };
            return Some(self.header(op, 0, 0));
        }
        if self.host_shutdown != self.shutdown_sent {
            self.shutdown_sent = self.host_shutdown;
            return Some(self.header(op::SHUTDOWN, 0, self.host_shutdown));
        }
        if self.owes_credit() {
            return Some(self.header(op::CREDIT_UPDATE, 0, 0));
        }
        self.stall = Stall::Asked;
        Some(self.header(op::CREDIT_REQUEST, 0, 0))
    }

    fn owes_credit(&self) -> bool {
        self.asked || (!self.guest_done && self.forwarded.wrapping_sub(self.told) >= TELL_AFTER)
    }

    /// Both sides have said all they had to say and it was delivered (`flushed`: the host socket took all).
    pub fn is_finished(&self, flushed: bool) -> bool {
        let host_said = self.guest_deaf || self.shutdown_sent & SHUTDOWN_SEND != 0;
        self.guest_done && flushed && host_said
    }

    /// The host is gone and the guest knows: only its RST, or a time-out, is missing.
    pub fn awaits_reset(&self) -> bool {
        self.shutdown_sent == SHUTDOWN_BOTH
    }

    /// The packet that ends this connection.
    pub fn reset(&mut self) -> Header {
        self.header(op::RST, 0, 0)
    }

    /// Every packet carries our credit, so every packet settles what we owe.
    fn header(&mut self, op: u16, len: u32, flags: u32) -> Header {
        self.told = self.forwarded;
        self.asked = false;
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: self.key.host_port,
            dst_port: self.key.guest_port,
            len,
            kind: TYPE_STREAM,
            op,
            flags,
            buf_alloc: BUF_ALLOC,
            fwd_cnt: self.forwarded,
        }
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
