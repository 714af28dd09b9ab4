//! All connections of one device, and the order in which they get their turn.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::buffers::Buffers;
use super::connection::{Connection, Effect, Key};
use super::link::{Link, Outlook};
use super::listener::Door;
use super::lobby::{Admitted, Lobby};
use super::packet::{HEADER_LEN, HOST_CID, Header, TYPE_STREAM, op};
use super::poller::{FIRST_ID, Poller, Ready};
use super::stream::Stream;

use crate::ram::Ram;

/// The most connections at a time, handshakes included; each holds one file descriptor.
pub const MAX_CONNECTIONS: usize = if cfg!(test) { 64 } else { 1024 };
/// The most RSTs that may wait for a buffer before packets are taken from the guest again.
pub const MAX_REPLIES: usize = 256;
/// How long the guest's RST is waited for after SHUTDOWN(both), as Linux does (`VSOCK_CLOSE_TIMEOUT`).
const CLOSE_TIMEOUT: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 8000 });
/// Host ports given to host programs lie above what anyone listens on.
const FIRST_PORT: u32 = 1 << 30;
/// How many packets one connection may send before the next has its turn.
const BURST: u32 = 8;

/// The connections, by an id that is never used again, and by their ports while the guest knows them.
pub struct Mux {
    guest_cid: u64,
    lobby: Lobby,
    poller: Poller,
    reports: Vec<Ready>,
    links: HashMap<u64, Link>,
    ids: HashMap<Key, u64>,
    /// Links that may have a packet for the guest; an id that is gone is passed over.
    waiting: VecDeque<u64>,
    /// Packets that the first of them has sent in this turn.
    burst: u32,
    /// RSTs that belong to no connection any more.
    replies: VecDeque<Header>,
    /// When to end links that wait for the guest's RST, soonest first.
    deadlines: BTreeSet<(Instant, u64)>,
    next_id: u64,
    next_port: u32,
}

impl Mux {
    /// No connections yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(guest_cid: u64, door: Door) -> std::io::Result<Self> {
        Ok(Self {
            guest_cid,
            poller: Poller::new(door.fd())?,
            lobby: Lobby::new(door),
            reports: Vec::new(),
            links: HashMap::new(),
            ids: HashMap::new(),
            waiting: VecDeque::new(),
            burst: 0,
            replies: VecDeque::new(),
            deadlines: BTreeSet::new(),
            next_id: FIRST_ID,
            next_port: FIRST_PORT,
        })
    }

    /// For the worker: readable while [`Mux::poll`] has something to do.
    pub fn fd(&self) -> RawFd {
        self.poller.fd()
    }

    /// Makes [`Mux::fd`] readable.
    pub fn call_again(&self) {
        self.poller.call_again();
    }

    /// Whether so many RSTs wait that no more packets should be taken from the guest.
    pub fn owes_too_many_replies(&self) -> bool {
        self.replies.len() >= MAX_REPLIES
    }

    /// Whether [`Mux::fill`] may have a packet.
    pub fn has_packet(&self) -> bool {
        !self.replies.is_empty() || !self.waiting.is_empty()
    }

    /// Puts the next packet into `buffers`; returns its length, or `None` if none was there after all.
    pub fn fill(&mut self, memory: &Ram, buffers: &Buffers) -> Option<u32> {
        if let Some(reply) = self.replies.pop_front() {
            buffers.set_header(memory, &reply);
            return Some(HEADER_LEN as u32);
        }
        while let Some(&id) = self.waiting.front() {
            let len = self
                .links
                .get_mut(&id)
                .and_then(|link| link.fill(memory, buffers));
            self.burst += 1;
            if len.is_none() || self.burst >= BURST {
                self.waiting.pop_front();
                self.burst = 0;
                if let Some(link) = self.links.get_mut(&id) {
                    link.queued = false;
                }
            }
            self.settle(id);
            if len.is_some() {
                return len;
            }
        }
        None
    }

    /// Takes the packet in `buffers` from the guest.
    pub fn receive(&mut self, memory: &Ram, buffers: &Buffers) {
        let header = buffers.header(memory);
        if header.src_cid != self.guest_cid {
            // Nobody is at that address to be told.
            return;
        }
        if header.dst_cid != HOST_CID || header.kind != TYPE_STREAM {
            self.refuse(&header);
            return;
        }
        let key = Key::of(&header);
        let known = self.ids.get(&key).copied();
        match (known, header.op) {
            (Some(id), op::REQUEST) => {
                // The guest would not ask if it still had the old one: its connect timed out without a word.
                self.detach(id);
                self.accept_guest(&header);
            }
            (None, op::REQUEST) => self.accept_guest(&header),
            (None, _) => self.refuse(&header),
            (Some(id), _) => self.receive_for(id, &header, memory, buffers),
        }
    }

    fn receive_for(&mut self, id: u64, header: &Header, memory: &Ram, buffers: &Buffers) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if header.op == op::RW && header.len as usize > buffers.payload_len() {
            // Bytes are missing from the stream for good.
            self.reset(id);
            return;
        }
        match link.state().receive(header) {
            Effect::Nothing => {}
            Effect::Opened => link.opened(),
            Effect::Payload => link.take_payload(memory, buffers, header.len),
            Effect::GuestDeaf => link.guest_deaf(),
            Effect::Detach { reset } => {
                if reset {
                    self.refuse(header);
                }
                self.detach(id);
            }
            Effect::Reset => {
                tracing::debug!(key = ?Key::of(header), "vsock: the guest broke the protocol");
                self.reset(id);
            }
        }
        self.settle(id);
    }

    fn refuse(&mut self, header: &Header) {
        self.replies.extend(header.refusal());
    }

    fn accept_guest(&mut self, request: &Header) {
        let port = request.dst_port;
        let dialled = match self.is_full() {
            true => Err(ErrorKind::ResourceBusy.into()),
            false => self.lobby.dial(port),
        };
        match dialled {
            Ok(socket) => self.insert(Connection::accepted(request), socket, None),
            Err(error) => {
                tracing::debug!(port, %error, "vsock: the guest dials in vain");
                self.refuse(request);
            }
        }
    }

    /// Adds a link; `id` if epoll watches its socket already.
    fn insert(&mut self, mut state: Connection, socket: UnixStream, id: Option<u64>) {
        let stream = Stream::new(socket);
        let (id, watched) = match id {
            Some(id) => (id, self.poller.rewatch(stream.fd(), id, false)),
            None => {
                let id = self.take_id();
                (id, self.poller.watch(stream.fd(), id))
            }
        };
        if let Err(error) = watched {
            tracing::warn!(%error, "vsock: watch a socket");
            if !state.is_requested() {
                self.replies.push_back(state.reset());
            }
            return;
        }
        self.ids.insert(state.key(), id);
        self.links.insert(id, Link::new(state, stream));
        self.settle(id);
    }

    fn take_id(&mut self) -> u64 {
        let id = self.next_id;
        // 2⁶⁴ connections don't happen.
        self.next_id = self.next_id.wrapping_add(1);
        id
    }

    fn is_full(&self) -> bool {
        self.links.len() + self.lobby.len() >= MAX_CONNECTIONS
    }

    /// Handles a batch of what happened on the host's side.
    pub fn poll(&mut self) {
        let mut reports = std::mem::take(&mut self.reports);
        self.poller.poll(&mut reports);
        for report in &reports {
            match *report {
                Ready::Door => self.lobby.knock(),
                Ready::Timer => self.time_out(),
                Ready::Socket {
                    id,
                    readable,
                    writable,
                    hung_up,
                } => {
                    if let Some(link) = self.links.get_mut(&id) {
                        link.socket_ready(readable, writable, hung_up);
                        self.settle(id);
                    } else {
                        self.advance(id);
                    }
                }
            }
        }
        self.reports = reports;
    }

    /// Lets host programs in, as far as there is room.
    pub fn admit(&mut self) {
        while !self.is_full() {
            let id = self.next_id;
            match self.lobby.admit(id, &self.poller) {
                Admitted::One => self.next_id = self.next_id.wrapping_add(1),
                Admitted::Blocked => return self.set_timer(),
                Admitted::None => return,
            }
        }
    }

    fn advance(&mut self, id: u64) {
        if let Some((socket, guest_port)) = self.lobby.advance(id) {
            let host_port = self.take_port(guest_port);
            let key = Key {
                host_port,
                guest_port,
            };
            let state = Connection::requested(key, self.guest_cid);
            self.insert(state, socket, Some(id));
        }
    }

    fn take_port(&mut self, guest_port: u32) -> u32 {
        loop {
            let host_port = self.next_port;
            self.next_port = FIRST_PORT | host_port.wrapping_add(1);
            let key = Key {
                host_port,
                guest_port,
            };
            // Ends, as there are more ports than connections.
            if !self.ids.contains_key(&key) {
                return host_port;
            }
        }
    }

    /// Follows up on whatever happened to a link.
    fn settle(&mut self, id: u64) {
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        match link.settle() {
            Outlook::Stays => {}
            Outlook::AwaitsReset => {
                if link.deadline.is_none() {
                    let deadline = Instant::now() + CLOSE_TIMEOUT;
                    link.deadline = Some(deadline);
                    self.deadlines.insert((deadline, id));
                    self.set_timer();
                }
            }
            Outlook::Reset => return self.reset(id),
            Outlook::Ends => return self.remove(id),
        }
        let Some(link) = self.links.get_mut(&id) else {
            return;
        };
        if link.has_packet() && !link.queued {
            link.queued = true;
            self.waiting.push_back(id);
        }
        if link.wants_room() != link.write_watched {
            link.write_watched = link.wants_room();
            if let Err(error) = self.poller.rewatch(link.fd(), id, link.wants_room()) {
                tracing::warn!(%error, "vsock: watch a socket");
            }
        }
    }

    /// The guest has let go of this link; it lives on until the host has all that was accepted for it.
    fn detach(&mut self, id: u64) {
        if let Some(link) = self.links.get_mut(&id) {
            self.ids.remove(&link.state().key());
            link.detach();
            self.settle(id);
        }
    }

    fn reset(&mut self, id: u64) {
        if let Some(link) = self.links.get_mut(&id) {
            self.replies.push_back(link.reset());
        }
        self.remove(id);
    }

    fn remove(&mut self, id: u64) {
        let Some(mut link) = self.links.remove(&id) else {
            return;
        };
        let key = link.state().key();
        if self.ids.get(&key) == Some(&id) {
            self.ids.remove(&key);
        }
        if let Some(deadline) = link.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        if self.waiting.len() > 2 * MAX_CONNECTIONS {
            // A guest that connects and resets without ever giving us a buffer.
            self.waiting.retain(|id| self.links.contains_key(id));
        }
        self.poller.unwatch(link.fd());
        drop(link);
        self.lobby.reopen();
    }

    fn time_out(&mut self) {
        let now = Instant::now();
        while let Some(&(deadline, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let link = self.links.get_mut(&id);
            if link.is_some_and(|link| link.settle() == Outlook::AwaitsReset) {
                self.reset(id);
            }
        }
        self.lobby.time_out(now);
        self.set_timer();
    }

    fn set_timer(&mut self) {
        let close = self.deadlines.first().map(|&(deadline, _)| deadline);
        if let Some(next) = self.lobby.retry_at().into_iter().chain(close).min() {
            self.poller
                .wake_after(next.saturating_duration_since(Instant::now()));
        }
    }
}
