//! The device as a guest's driver and host programs see it, with fake rings and real Unix sockets.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Vsock;
use super::connection::BUF_ALLOC;
use super::mux::MAX_CONNECTIONS;
use super::packet::{HEADER_LEN, Header, SHUTDOWN_BOTH, SHUTDOWN_RCV, SHUTDOWN_SEND, op};
use crate::device::{Event, Handler, Served, VirtioDevice};
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, activation, ram};

const CID: u64 = 3;
const PORT: u32 = 5000;
const GUEST_PORT: u32 = 6000;
const RX_BUFFER: usize = 4096;
const GUEST_BUF: u32 = 1 << 18;

/// A guest's driver and a host's folder.
struct Rig {
    dir: TempDir,
    _device: Vsock,
    handler: Box<dyn Handler>,
    rx: DriverQueue,
    tx: DriverQueue,
    rx_buffers: HashMap<u16, Buffer>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut device = Vsock::new(CID, dir.path().join("vsock")).unwrap();
        let memory = ram(8);
        let [rx, tx, events] = [0, 1, 2].map(|index| DriverQueue::new(&memory, index, 128));
        let queues = [&rx, &tx, &events];
        let handler = device
            .activate(activation(&queues, 0, Arc::new(FakeInterrupt::default())))
            .unwrap();
        Self {
            dir,
            _device: device,
            handler,
            rx,
            tx,
            rx_buffers: HashMap::new(),
        }
    }

    fn listen(&self, port: u32) -> UnixListener {
        let path = self.dir.path().join(format!("vsock_{port}"));
        UnixListener::bind(path).unwrap()
    }

    fn kick(&mut self, queue: u16) {
        assert_eq!(self.handler.serve(Event::Queue(queue)), Served::Done);
    }

    /// Lets the device see whatever the host programs did.
    fn host_event(&mut self) {
        // Twice: who was let in by the first may have said what it wants already.
        for _ in 0..2 {
            let event = Event::Source {
                token: 0,
                readable: true,
                writable: false,
            };
            assert_eq!(self.handler.serve(event), Served::Done);
        }
    }

    fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header {
            len: payload.len() as u32,
            ..header
        };
        let head = self.tx.readable(&header.encode());
        let mut chain = vec![head];
        if !payload.is_empty() {
            chain.push(self.tx.readable(payload));
        }
        self.send_chain(&chain);
    }

    fn send_chain(&mut self, chain: &[Buffer]) {
        self.tx.add(chain);
        self.kick(1);
    }

    fn give(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.rx.writable(RX_BUFFER);
            let head = self.rx.add(&[buffer]);
            self.rx_buffers.insert(head, buffer);
        }
        self.kick(0);
    }

    fn next(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.rx.used()?;
        let buffer = self.rx_buffers.remove(&head).unwrap();
        let bytes = self.rx.bytes(buffer);
        let header = Header::parse(bytes[..HEADER_LEN].try_into().unwrap());
        assert_eq!(len as usize, HEADER_LEN + header.len as usize);
        Some((header, bytes[HEADER_LEN..len as usize].to_vec()))
    }

    fn next_op(&mut self) -> Option<u16> {
        self.next().map(|(header, _)| header.op)
    }

    /// A connection that the guest made, with the host program's end.
    fn connected() -> (Self, UnixStream) {
        let mut rig = Self::new();
        let listener = rig.listen(PORT);
        rig.send(packet(op::REQUEST), &[]);
        rig.give(4);
        assert_eq!(rig.next_op(), Some(op::RESPONSE));
        let (host, _) = listener.accept().unwrap();
        host.set_nonblocking(true).unwrap();
        (rig, host)
    }

    /// Waits until the device's source is readable.
    fn wait(&self, timeout_ms: i32) -> bool {
        let epoll = Epoll::new().unwrap();
        let source = self.handler.sources()[0];
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, source.fd, interest)
            .unwrap();
        epoll
            .wait(timeout_ms, &mut [EpollEvent::default()])
            .unwrap()
            > 0
    }
}

fn packet(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: 2,
        src_port: GUEST_PORT,
        dst_port: PORT,
        kind: 1,
        op,
        buf_alloc: GUEST_BUF,
        ..Header::default()
    }
}

fn shutdown(flags: u32) -> Header {
    Header {
        flags,
        ..packet(op::SHUTDOWN)
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Reads until nothing is there; whether that was end of file.
fn read_all(host: &mut UnixStream, into: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 4096];
    loop {
        match host.read(&mut chunk) {
            Ok(0) => return true,
            Ok(count) => into.extend_from_slice(&chunk[..count]),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return false,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Sends until the guest's credit is used up; returns what was sent.
fn fill_up(rig: &mut Rig) -> Vec<u8> {
    let sent = pattern(1 << 20);
    let mut credit = BUF_ALLOC;
    let mut at = 0;
    rig.give(1);
    while credit > 0 {
        let count = credit.min(32 * 1024);
        rig.send(packet(op::RW), &sent[at..at + count as usize]);
        at += count as usize;
        credit -= count;
        while let Some((header, _)) = rig.next() {
            credit = BUF_ALLOC - (at as u32).wrapping_sub(header.fwd_cnt);
            rig.give(1);
        }
    }
    sent[..at].to_vec()
}

#[test]
fn bytes_flow_both_ways_on_a_connection_that_the_guest_made() {
    let (mut rig, mut host) = Rig::connected();
    rig.send(packet(op::RW), b"from the guest");
    let mut got = Vec::new();
    assert!(!read_all(&mut host, &mut got));
    assert_eq!(got, b"from the guest");
    host.write_all(b"from the host").unwrap();
    rig.host_event();
    let (header, payload) = rig.next().unwrap();
    assert_eq!((header.op, header.fwd_cnt), (op::RW, 14));
    assert_eq!(payload, b"from the host");
}

#[test]
fn a_port_where_nobody_listens_is_refused() {
    let mut rig = Rig::new();
    rig.give(1);
    rig.send(packet(op::REQUEST), &[]);
    let (header, _) = rig.next().unwrap();
    assert_eq!(
        (header.op, header.src_port, header.dst_port),
        (op::RST, PORT, GUEST_PORT)
    );
}

fn dial(rig: &mut Rig, line: &[u8]) -> (UnixStream, Header) {
    let mut host = UnixStream::connect(rig.dir.path().join("vsock")).unwrap();
    host.set_nonblocking(true).unwrap();
    host.write_all(line).unwrap();
    rig.give(4);
    rig.host_event();
    let (request, _) = rig.next().unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 77));
    let answer = Header {
        src_port: 77,
        dst_port: request.src_port,
        ..packet(op::RESPONSE)
    };
    (host, answer)
}

#[test]
fn a_host_program_reaches_a_guest_port_and_nothing_behind_its_line_is_lost() {
    let mut rig = Rig::new();
    let (mut host, answer) = dial(&mut rig, b"CONNECT 77\nhello");
    rig.send(answer, &[]);
    let mut got = Vec::new();
    assert!(!read_all(&mut host, &mut got));
    assert_eq!(got, format!("OK {}\n", answer.dst_port).as_bytes());
    assert_eq!(rig.next().unwrap().1, b"hello");
}

#[test]
fn a_guest_port_without_a_listener_is_end_of_file() {
    let mut rig = Rig::new();
    let (mut host, answer) = dial(&mut rig, b"CONNECT 77\n");
    rig.send(
        Header {
            op: op::RST,
            ..answer
        },
        &[],
    );
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got));
    assert_eq!(got, b"");
}

#[test]
fn a_host_program_that_gives_up_leaves_nothing() {
    let mut rig = Rig::new();
    let (host, answer) = dial(&mut rig, b"CONNECT 77\n");
    drop(host);
    rig.host_event();
    rig.send(answer, &[]);
    assert_eq!(rig.next_op(), Some(op::RST));
}

#[test]
fn a_host_program_that_does_not_read_stops_the_guest_and_loses_nothing() {
    let (mut rig, mut host) = Rig::connected();
    let mut sent = fill_up(&mut rig);
    let mut got = Vec::new();
    read_all(&mut host, &mut got);
    rig.host_event();
    let (update, _) = rig.next().unwrap();
    assert_eq!(update.op, op::CREDIT_UPDATE);
    rig.send(packet(op::RW), b"more");
    sent.extend_from_slice(b"more");
    while got.len() < sent.len() {
        read_all(&mut host, &mut got);
        rig.host_event();
    }
    assert!(got == sent);
}

#[test]
fn a_guest_that_exceeds_its_credit_is_reset() {
    let (mut rig, _host) = Rig::connected();
    fill_up(&mut rig);
    // What has left for the host but was not told yet is forgiven; it is less than half of the buffer.
    rig.send(packet(op::RW), &pattern(BUF_ALLOC as usize / 2));
    assert_eq!(rig.next_op(), Some(op::RST));
}

#[test]
fn without_buffers_the_host_is_not_read_and_nothing_spins() {
    let (mut rig, mut host) = Rig::connected();
    while rig.next().is_some() {}
    host.write_all(&pattern(20_000)).unwrap();
    rig.host_event();
    let mut wrote = 20_000;
    while let Ok(count) = host.write(&[0; 4096]) {
        wrote += count;
        rig.host_event();
    }
    assert!(wrote < 1 << 20, "the host program is stopped");
    assert!(!rig.wait(0), "nothing to do until the guest gives a buffer");
    drop(host);
    rig.host_event();
    assert!(!rig.wait(0), "a hung-up host is reported once");
}

#[test]
fn the_guests_end_of_file_comes_after_its_last_byte() {
    let (mut rig, mut host) = Rig::connected();
    let sent = fill_up(&mut rig);
    rig.send(shutdown(SHUTDOWN_SEND), &[]);
    let mut got = Vec::new();
    while !read_all(&mut host, &mut got) {
        rig.host_event();
    }
    assert!(got == sent);
    host.write_all(b"still open").unwrap();
    rig.host_event();
    while let Some((header, payload)) = rig.next() {
        if header.op == op::RW {
            assert_eq!(payload, b"still open");
            return;
        }
    }
    panic!("the other direction is open");
}

#[test]
fn the_hosts_end_of_file_comes_after_its_last_byte_and_both_ends_make_a_reset() {
    let (mut rig, mut host) = Rig::connected();
    let sent = pattern(30_000);
    host.write_all(&sent).unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    rig.host_event();
    let mut got = Vec::new();
    let last = loop {
        match rig.next() {
            Some((header, payload)) if header.op == op::RW => got.extend_from_slice(&payload),
            Some((header, _)) => break header,
            None => rig.give(1),
        }
    };
    assert!(got == sent);
    assert_eq!((last.op, last.flags), (op::SHUTDOWN, SHUTDOWN_SEND));
    rig.give(2);
    rig.send(packet(op::RW), b"reply");
    rig.send(shutdown(SHUTDOWN_SEND), &[]);
    assert_eq!(rig.next_op(), Some(op::RST));
    let mut reply = Vec::new();
    assert!(read_all(&mut host, &mut reply));
    assert_eq!(reply, b"reply");
}

#[test]
fn a_guest_that_closes_is_freed_at_once_and_its_bytes_still_arrive() {
    for (last, answer) in [
        (shutdown(SHUTDOWN_BOTH), Some(op::RST)),
        (packet(op::RST), None),
    ] {
        let (mut rig, mut host) = Rig::connected();
        let sent = fill_up(&mut rig);
        rig.send(last, &[]);
        assert_eq!(rig.next_op(), answer);
        rig.give(2);
        rig.send(packet(op::REQUEST), &[]);
        assert_eq!(
            rig.next_op(),
            Some(op::RST),
            "the port is free; nobody listens any more"
        );
        let mut got = Vec::new();
        while !read_all(&mut host, &mut got) {
            rig.host_event();
        }
        assert!(got == sent);
    }
}

#[test]
fn a_host_program_that_is_not_read_out_still_sees_end_of_file() {
    let (mut rig, mut host) = Rig::connected();
    while rig.next().is_some() {}
    host.write_all(&pattern(100_000)).unwrap();
    rig.host_event();
    rig.send(packet(op::RW), b"last words");
    rig.send(shutdown(SHUTDOWN_BOTH), &[]);
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got), "not ECONNRESET");
    assert_eq!(got, b"last words");
}

#[test]
fn a_host_that_is_gone_is_told_at_once_and_its_last_bytes_still_arrive() {
    let (mut rig, mut host) = Rig::connected();
    rig.give(8);
    fill_up(&mut rig);
    host.write_all(b"last words").unwrap();
    drop(host);
    rig.host_event();
    let mut got = Vec::new();
    let mut flags = Vec::new();
    while let Some((header, payload)) = rig.next() {
        got.extend_from_slice(&payload);
        if header.op == op::SHUTDOWN {
            assert!(header.flags & SHUTDOWN_SEND == 0 || got == b"last words");
            flags.push(header.flags);
        }
    }
    assert_eq!(got, b"last words");
    assert_eq!(flags, [SHUTDOWN_RCV, SHUTDOWN_BOTH]);
    assert!(rig.wait(10_000), "the wait for the guest's RST ends");
    rig.host_event();
    assert_eq!(rig.next_op(), Some(op::RST));
    rig.send(packet(op::RW), b"x");
    assert_eq!(rig.next_op(), Some(op::RST), "nothing is left of it");
}

#[test]
fn packets_for_nobody_are_refused_or_dropped() {
    let (mut rig, _host) = Rig::connected();
    rig.give(16);
    let cases = [
        (
            Header {
                src_cid: 9,
                ..packet(op::REQUEST)
            },
            None,
        ),
        (
            Header {
                dst_cid: 7,
                ..packet(op::REQUEST)
            },
            Some(op::RST),
        ),
        (
            Header {
                kind: 2,
                ..packet(op::REQUEST)
            },
            Some(op::RST),
        ),
        (
            Header {
                src_port: 1,
                ..packet(op::RW)
            },
            Some(op::RST),
        ),
        (
            Header {
                src_port: 1,
                ..packet(99)
            },
            Some(op::RST),
        ),
        (
            Header {
                src_port: 1,
                ..packet(op::RST)
            },
            None,
        ),
        (packet(op::RESPONSE), None),
        (packet(99), None),
        (packet(op::CREDIT_REQUEST), Some(op::CREDIT_UPDATE)),
    ];
    for (header, answer) in cases {
        rig.send(header, &[]);
        assert_eq!(rig.next_op(), answer, "{header:?}");
    }
}

#[test]
fn a_length_beyond_the_chain_ends_the_connection() {
    let (mut rig, mut host) = Rig::connected();
    let header = Header {
        len: 100,
        ..packet(op::RW)
    };
    let chain = [rig.tx.readable(&header.encode()), rig.tx.readable(b"short")];
    rig.send_chain(&chain);
    assert_eq!(rig.next_op(), Some(op::RST));
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got));
    assert_eq!(got, b"");
}

#[test]
fn a_packet_may_be_cut_anywhere() {
    let (mut rig, mut host) = Rig::connected();
    let mut raw = Header {
        len: 6,
        ..packet(op::RW)
    }
    .encode()
    .to_vec();
    raw.extend_from_slice(b"pieces");
    let chain: Vec<Buffer> = raw.chunks(5).map(|piece| rig.tx.readable(piece)).collect();
    rig.send_chain(&chain);
    let mut got = Vec::new();
    read_all(&mut host, &mut got);
    assert_eq!(got, b"pieces");
    host.write_all(b"answer").unwrap();
    while rig.rx.used().is_some() {}
    let pieces: Vec<Buffer> = (0..50).map(|_| rig.rx.writable(1)).collect();
    // The buffers that are still there come first.
    rig.host_event();
    rig.rx.add(&pieces);
    host.write_all(b"again").unwrap();
    for _ in 0..8 {
        rig.host_event();
        host.write_all(b"again").unwrap();
    }
    let raw: Vec<u8> = pieces.iter().flat_map(|p| rig.rx.bytes(*p)).collect();
    assert_eq!(
        Header::parse(raw[..HEADER_LEN].try_into().unwrap()).op,
        op::RW
    );
    assert_eq!(&raw[HEADER_LEN..HEADER_LEN + 5], b"again");
}

#[test]
fn chains_that_hold_no_packet_are_given_back() {
    let (mut rig, mut host) = Rig::connected();
    let short = rig.tx.readable(&[0; 43]);
    rig.send_chain(&[short]);
    let outside = Buffer {
        address: 1 << 40,
        length: 100,
        flags: 0,
    };
    rig.send_chain(&[outside]);
    assert_eq!(rig.tx.used().map(|u| u.1), Some(0));
    while rig.next().is_some() {}
    let tiny = rig.rx.writable(HEADER_LEN);
    while rig.handler.serve(Event::Queue(0)) != Served::Done {}
    rig.rx.add(&[tiny]);
    host.write_all(&pattern(100_000)).unwrap();
    rig.host_event();
    let mut lens = Vec::new();
    while let Some((_, len)) = rig.rx.used() {
        lens.push(len);
    }
    assert_eq!(lens.last(), Some(&0));
}

#[test]
fn a_second_request_replaces_the_connection() {
    let (mut rig, mut host) = Rig::connected();
    rig.send(packet(op::REQUEST), &[]);
    let mut got = Vec::new();
    assert!(read_all(&mut host, &mut got));
    assert_eq!(rig.next_op(), Some(op::RST), "and nobody listens any more");
}

#[test]
fn connections_are_limited_and_come_back() {
    let mut rig = Rig::new();
    let listener = rig.listen(PORT);
    let mut hosts = Vec::new();
    let mut open = |rig: &mut Rig, src_port| {
        rig.give(1);
        rig.send(
            Header {
                src_port,
                ..packet(op::REQUEST)
            },
            &[],
        );
        let answer = rig.next_op();
        if answer == Some(op::RESPONSE) {
            hosts.push(listener.accept().unwrap());
        }
        answer
    };
    for port in 0..MAX_CONNECTIONS as u32 {
        assert_eq!(open(&mut rig, port), Some(op::RESPONSE));
    }
    assert_eq!(open(&mut rig, 9_000), Some(op::RST));
    rig.send(
        Header {
            src_port: 1,
            ..packet(op::RST)
        },
        &[],
    );
    assert_eq!(open(&mut rig, 9_001), Some(op::RESPONSE));
}

#[test]
fn a_guest_that_takes_no_answers_is_not_listened_to() {
    let mut rig = Rig::new();
    for src_port in 0..1000 {
        let header = Header {
            src_port,
            ..packet(op::RW)
        };
        let buffer = rig.tx.readable(&header.encode());
        rig.tx.add(&[buffer]);
        if src_port % 64 == 0 {
            rig.kick(1);
        }
        if (0..64).filter(|_| rig.tx.used().is_none()).count() == 64 && src_port % 64 == 0 {
            break;
        }
    }
    let mut answers = 0;
    for _ in 0..100 {
        rig.give(16);
        while rig.next().is_some() {
            answers += 1;
        }
    }
    assert!(answers >= 256, "{answers} answers: all that were owed came");
}

#[test]
fn configuration_is_the_cid() {
    let dir = tempfile::tempdir().unwrap();
    let device = Vsock::new(0x1234, dir.path().join("s")).unwrap();
    let mut data = [0xff; 8];
    device.read_config(1, &mut data);
    assert_eq!(data, [0x12, 0, 0, 0, 0, 0, 0, 0]);
    for cid in [0, 1, 2, u64::from(u32::MAX), 1 << 40] {
        assert!(Vsock::new(cid, dir.path().join("t")).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_garbage_panics_or_spins(data in proptest::collection::vec(any::<u8>(), 0..2000)) {
        super::fuzz::run(&data);
    }
}

#[derive(Debug, Clone)]
enum Step {
    GuestWrites(usize),
    GuestReads,
    HostWrites(usize),
    HostReads(usize),
    Buffers(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..60_000usize).prop_map(Step::GuestWrites),
        Just(Step::GuestReads),
        (1..60_000usize).prop_map(Step::HostWrites),
        (1..60_000usize).prop_map(Step::HostReads),
        (1..16usize).prop_map(Step::Buffers),
    ]
}

/// A guest that keeps to its credit, and a host program, each with a stream of known bytes.
struct Talk {
    rig: Rig,
    host: UnixStream,
    guest_sent: usize,
    guest_knows: u32,
    guest_got: Vec<u8>,
    guest_eof: bool,
    host_sent: usize,
    host_got: Vec<u8>,
    host_eof: bool,
}

impl Talk {
    fn run(&mut self, step: &Step, bytes: &[u8]) {
        match *step {
            Step::GuestWrites(count) => {
                let credit = BUF_ALLOC - (self.guest_sent as u32 - self.guest_knows);
                let end = bytes
                    .len()
                    .min(self.guest_sent + count.min(credit as usize));
                let fwd_cnt = self.guest_got.len() as u32;
                let payload = &bytes[self.guest_sent..end];
                self.rig.send(
                    Header {
                        fwd_cnt,
                        ..packet(op::RW)
                    },
                    payload,
                );
                self.guest_sent = end;
            }
            Step::GuestReads => {
                while let Some((header, payload)) = self.rig.next() {
                    assert!(
                        !self.guest_eof || header.op != op::RW,
                        "bytes after end of file"
                    );
                    self.guest_knows = header.fwd_cnt;
                    self.guest_got.extend_from_slice(&payload);
                    self.guest_eof |=
                        header.op == op::SHUTDOWN && header.flags & SHUTDOWN_SEND != 0;
                }
                let fwd_cnt = self.guest_got.len() as u32;
                self.rig.send(
                    Header {
                        fwd_cnt,
                        ..packet(op::CREDIT_UPDATE)
                    },
                    &[],
                );
            }
            Step::HostWrites(count) => {
                let end = bytes.len().min(self.host_sent + count);
                self.host_sent += self.host.write(&bytes[self.host_sent..end]).unwrap_or(0);
                self.rig.host_event();
            }
            Step::HostReads(count) => {
                let mut chunk = vec![0; count];
                match self.host.read(&mut chunk) {
                    Ok(0) => self.host_eof = true,
                    Ok(count) => self.host_got.extend_from_slice(&chunk[..count]),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
                }
                self.rig.host_event();
            }
            Step::Buffers(count) => {
                let room = 100usize.saturating_sub(self.rig.rx_buffers.len());
                self.rig.give(count.min(room));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn both_streams_arrive_whole_in_order_and_end_after_their_last_byte(steps in proptest::collection::vec(step(), 1..300)) {
        let bytes = pattern(1 << 20);
        let (rig, host) = Rig::connected();
        let mut talk = Talk {
            rig, host, guest_sent: 0, guest_knows: 0, guest_got: Vec::new(), guest_eof: false,
            host_sent: 0, host_got: Vec::new(), host_eof: false,
        };
        for step in &steps {
            talk.run(step, &bytes);
        }
        talk.host.shutdown(Shutdown::Write).unwrap();
        talk.rig.send(shutdown(SHUTDOWN_SEND), &[]);
        for _ in 0..3000 {
            if talk.guest_eof && talk.host_eof {
                break;
            }
            for step in [Step::HostReads(1 << 16), Step::Buffers(16), Step::GuestReads] {
                talk.run(&step, &bytes);
            }
        }
        prop_assert!(talk.guest_eof && talk.host_eof);
        prop_assert!(talk.guest_got == bytes[..talk.host_sent]);
        prop_assert!(talk.host_got == bytes[..talk.guest_sent]);
    }
}
