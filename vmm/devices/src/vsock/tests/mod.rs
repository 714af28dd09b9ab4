//! The device as a guest's driver and host programs see it, with fake rings and real Unix sockets.

mod endings;
mod limits;
mod streams;
mod talk;

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use tempfile::TempDir;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Vsock;
use super::connection::BUF_ALLOC;
use super::packet::{HEADER_LEN, Header, op};
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
        Self::with_rings(128)
    }

    fn with_rings(size: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut device = Vsock::new(CID, dir.path().join("vsock")).unwrap();
        let memory = ram(8);
        let [rx, tx, events] = [0, 1, 2].map(|index| DriverQueue::new(&memory, index, size));
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
