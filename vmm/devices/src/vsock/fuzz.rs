//! Plays a hostile driver and careless host programs, as bytes say: for the fuzz target and a property test.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::Vsock;
use super::packet::Header;
use crate::device::{Event, Handler, Served, VirtioDevice};
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, INDIRECT, NEXT, WRITE, activation, ram};

const CID: u64 = 3;
const RING: u16 = 32;
/// The host listens here; the guest may dial any of the next few.
const PORT: u32 = 100;
/// More calls than this for no new reason are spinning.
const QUIET_AFTER: usize = 200;

/// Runs one script against a new device.
///
/// # Panics
/// If the device does, or if it wants to be called again and again.
pub fn run(data: &[u8]) {
    let scratch = Scratch::new();
    let mut play = Play::new(Script(data), &scratch.0);
    while !play.script.0.is_empty() && play.step() == Served::Done {}
    play.settle();
}

/// What is left of the script; past its end everything is zero.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn word(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Mostly what is right, now and then anything.
    fn mostly(&mut self, right: u32) -> u32 {
        if self.byte() < 240 {
            right
        } else {
            self.word()
        }
    }
}

/// A folder that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("vmbox-vsock-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for sockets");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Play<'a> {
    script: Script<'a>,
    path: PathBuf,
    handler: Box<dyn Handler>,
    queues: [DriverQueue; 3],
    listener: UnixListener,
    hosts: Vec<UnixStream>,
    broken: bool,
    // Dropped last: its listener's file is in the folder.
    _device: Vsock,
}

impl<'a> Play<'a> {
    fn new(script: Script<'a>, folder: &Path) -> Self {
        let path = folder.join("vsock");
        let mut device = Vsock::new(CID, path.clone()).expect("a fresh path");
        let memory = ram(4);
        let queues = [0, 1, 2].map(|index| DriverQueue::new(&memory, index, RING));
        let interrupt = Arc::new(FakeInterrupt::default());
        let handler = device
            .activate(activation(&queues.each_ref(), 0, interrupt))
            .unwrap_or_else(|error| panic!("{error}"));
        let listener =
            UnixListener::bind(folder.join(format!("vsock_{PORT}"))).expect("a fresh path");
        listener.set_nonblocking(true).expect("a socket");
        Self {
            script,
            path,
            handler,
            queues,
            listener,
            hosts: Vec::new(),
            broken: false,
            _device: device,
        }
    }

    fn step(&mut self) -> Served {
        match self.script.byte() % 10 {
            0..=3 => self.packet(),
            4 => self.garbage_chain(),
            5 | 6 => self.rx_buffers(),
            7 => self.host_program(),
            8 => self.host_dials(),
            _ => self.garbage_ring(),
        }
        let event = match self.script.byte() % 8 {
            0 => return Served::Done,
            1 | 2 => Event::Queue(0),
            3..=5 => Event::Queue(1),
            _ => HOST,
        };
        self.serve(event)
    }

    fn serve(&mut self, event: Event) -> Served {
        let served = self.handler.serve(event);
        self.broken |= served == Served::Broken;
        served
    }

    fn packet(&mut self) {
        let script = &mut self.script;
        let len = u32::from(script.byte()) * 64;
        let header = Header {
            src_cid: u64::from(script.mostly(CID as u32)),
            dst_cid: u64::from(script.mostly(2)),
            src_port: u32::from(script.byte() % 4),
            dst_port: match script.byte() % 8 {
                0 => (1 << 30) + u32::from(script.byte() % 4),
                1 => PORT + 1,
                _ => PORT,
            },
            len: script.mostly(len),
            kind: script.mostly(1) as u16,
            op: u16::from(script.byte() % 9),
            flags: u32::from(script.byte() % 4),
            buf_alloc: script.mostly(1 << 16),
            fwd_cnt: script.mostly(0),
        };
        let mut raw = header.encode().to_vec();
        raw.resize(raw.len() + len as usize, 0x5a);
        let piece = usize::from(script.byte()) * 16 + 9;
        let tx = &mut self.queues[1];
        let chain: Vec<Buffer> = raw
            .chunks(piece.max(raw.len() / 8 + 1))
            .map(|piece| tx.readable(piece))
            .collect();
        tx.add(&chain);
    }

    fn garbage_chain(&mut self) {
        let queue = usize::from(self.script.byte() % 2);
        let chain: Vec<Buffer> = (0..self.script.byte() % 5)
            .map(|_| Buffer {
                address: u64::from(self.script.mostly(0x20_0000)),
                length: self.script.mostly(100),
                flags: u16::from(self.script.byte()) & (NEXT | WRITE | INDIRECT),
            })
            .collect();
        self.queues[queue].add(&chain);
    }

    fn rx_buffers(&mut self) {
        for _ in 0..self.script.byte() % 8 {
            let length = usize::from(self.script.byte()) * 16;
            let cut = usize::from(self.script.byte() % 60);
            let rx = &mut self.queues[0];
            let chain = [rx.writable(cut), rx.writable(length)];
            rx.add(&chain);
        }
    }

    fn host_program(&mut self) {
        if let Ok((host, _)) = self.listener.accept() {
            self.keep(host);
        }
        if self.hosts.is_empty() {
            return;
        }
        let index = usize::from(self.script.byte()) % self.hosts.len();
        let host = &mut self.hosts[index];
        // Whatever the socket says is fine with a careless program.
        match self.script.byte() % 6 {
            0 => drop(self.hosts.swap_remove(index)),
            1 => drop(host.shutdown(Shutdown::Write)),
            2 => drop(host.shutdown(Shutdown::Read)),
            3 => drop(host.read(&mut [0; 10_000])),
            _ => drop(host.write(&[7; 10_000][..usize::from(self.script.byte()) * 39])),
        }
    }

    fn host_dials(&mut self) {
        let Ok(mut host) = UnixStream::connect(&self.path) else {
            return;
        };
        let port = self.script.byte() % 4;
        let line = format!("CONNECT {port}\nhello");
        let len = self.script.mostly(line.len() as u32) as usize % (line.len() + 1);
        let _ = host.write(&line.as_bytes()[..len]);
        self.keep(host);
    }

    fn keep(&mut self, host: UnixStream) {
        host.set_nonblocking(true).expect("a socket");
        self.hosts.push(host);
    }

    fn garbage_ring(&mut self) {
        if self.script.byte() < 200 {
            return;
        }
        let queue = usize::from(self.script.byte() % 2);
        let index = self.script.word() as u16;
        self.queues[queue].set_available_index(index);
    }

    /// Nothing new happens: after a while the device must have nothing to do.
    fn settle(&mut self) {
        let epoll = Epoll::new().expect("an epoll");
        for source in self.handler.sources() {
            let interest = EpollEvent::new(EventSet::IN, 0);
            epoll
                .ctl(ControlOperation::Add, source.fd, interest)
                .expect("its sources can be watched");
        }
        for _ in 0..QUIET_AFTER {
            let ready = epoll.wait(0, &mut [EpollEvent::default()]);
            if self.broken || ready.expect("an epoll") == 0 {
                return;
            }
            self.serve(HOST);
        }
        panic!("the device wants to be called for ever");
    }
}

const HOST: Event = Event::Source {
    token: 0,
    readable: true,
    writable: false,
};
