//! The network device against a driver in fake memory and a wire that is a socket.

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};

use super::*;
use crate::device::{Event, Served};
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, FakePort, WRITE, activation, ram};

const MAC: Mac = [2, 0, 0, 0, 0, 1];
const RX_KICK: Event = Event::Queue(0);
const TX_KICK: Event = Event::Queue(1);
const MERGEABLE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const HEADER: [u8; HEADER_BYTES] = [0; HEADER_BYTES];

/// An active NIC, its driver, and, once it is attached, its wire.
struct Rig {
    handler: Box<dyn Handler>,
    device: Net,
    nic: NicHandle,
    rx: DriverQueue,
    tx: DriverQueue,
    interrupt: Arc<FakeInterrupt>,
    /// Receive buffers that have not come back, oldest first.
    offered: VecDeque<Buffer>,
}

impl Rig {
    fn new(features: u64, ring: u16) -> Self {
        let memory = ram(4);
        let (rx, tx) = (
            DriverQueue::new(&memory, 0, ring),
            DriverQueue::new(&memory, 1, ring),
        );
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut device = Net::new(MAC, None).unwrap();
        let nic = device.handle();
        let handler = device
            .activate(activation(&[&rx, &tx], features, interrupt.clone()))
            .unwrap();
        Self {
            handler,
            device,
            nic,
            rx,
            tx,
            interrupt,
            offered: VecDeque::new(),
        }
    }

    fn attach(&mut self) -> (Arc<FakePort>, UnixDatagram) {
        let (port, wire) = FakePort::pair().unwrap();
        self.nic.attach(port.clone()).unwrap();
        self.wake();
        (port, wire)
    }

    /// Serves every source once, as a worker does whose sources are all readable.
    fn wake(&mut self) -> Vec<Served> {
        let sources = self.handler.sources();
        let events = sources.iter().map(|source| Event::Source {
            token: source.token,
            readable: true,
            writable: false,
        });
        events.map(|event| self.handler.serve(event)).collect()
    }

    fn is_listening(&self) -> bool {
        self.handler.sources().len() == 2
    }

    fn offer(&mut self, lengths: &[usize]) {
        for length in lengths {
            let buffer = self.rx.writable(*length);
            self.rx.add(&[buffer]);
            self.offered.push_back(buffer);
        }
    }

    /// The next receive buffer that has come back, as far as it was written.
    fn used(&mut self) -> Option<Vec<u8>> {
        let (_, written) = self.rx.used()?;
        let mut bytes = self.rx.bytes(self.offered.pop_front().unwrap());
        bytes.truncate(written as usize);
        Some(bytes)
    }

    /// The frames that have arrived, each with its `num_buffers` checked and set to zero.
    fn arrived(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(mut frame) = self.used() {
            let buffers = u16::from_le_bytes([frame[10], frame[11]]);
            frame[10..12].fill(0);
            for _ in 1..buffers {
                frame.extend(self.used().expect("all buffers of a frame appear together"));
            }
            frames.push(frame);
        }
        frames
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.device.read_config(6, &mut status);
        status[0]
    }
}

fn frame(length: usize) -> Vec<u8> {
    let body = (0..length).map(|i| (i % 251) as u8);
    HEADER.into_iter().chain(body).collect()
}

fn received(wire: &UnixDatagram) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 17];
    let length = wire.recv(&mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

#[test]
fn the_configuration_space_says_mac_link_and_mtu() {
    let device = Net::new(MAC, Some(1400)).unwrap();
    let mut config = [0xff; 14];
    device.read_config(0, &mut config);
    assert_eq!(config, [2, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0x78, 5, 0, 0]);
    assert_ne!(device.profile().features & (1 << VIRTIO_NET_F_MTU), 0);
    let without = Net::new(MAC, None).unwrap().profile();
    assert_eq!(without.features & (1 << VIRTIO_NET_F_MTU), 0);
}

#[test]
fn attaching_and_detaching_moves_the_link_and_tells_the_driver() {
    let mut rig = Rig::new(MERGEABLE, 16);
    assert_eq!((rig.status(), rig.interrupt.configs()), (0, 0));
    let (port, _wire) = rig.attach();
    assert_eq!((rig.status(), rig.interrupt.configs()), (1, 1));
    assert_eq!(rig.nic.attach(port), Err(Occupied));
    assert!(rig.is_listening());
    assert!(rig.nic.detach());
    assert_eq!((rig.status(), rig.interrupt.configs()), (0, 2));
    rig.wake();
    assert!(!rig.is_listening());
    assert!(!rig.nic.detach());
}

#[test]
fn a_port_that_was_attached_before_the_driver_came_is_served() {
    let memory = ram(4);
    let (rx, mut tx) = (
        DriverQueue::new(&memory, 0, 16),
        DriverQueue::new(&memory, 1, 16),
    );
    let mut device = Net::new(MAC, None).unwrap();
    let (port, wire) = FakePort::pair().unwrap();
    device.handle().attach(port).unwrap();
    let interrupt = Arc::new(FakeInterrupt::default());
    let mut handler = device
        .activate(activation(&[&rx, &tx], 0, interrupt))
        .unwrap();
    let buffer = tx.readable(&frame(60));
    tx.add(&[buffer]);
    assert_eq!(handler.serve(TX_KICK), Served::Done);
    assert_eq!(received(&wire), Some(frame(60)));
}

#[test]
fn a_frame_of_the_guest_reaches_the_wire_in_one_piece() {
    let mut rig = Rig::new(0, 16);
    let (_port, wire) = rig.attach();
    let sent = frame(1000);
    let (a, b) = (rig.tx.readable(&sent[..7]), rig.tx.readable(&sent[7..]));
    rig.tx.add(&[a, b]);
    assert_eq!(rig.handler.serve(TX_KICK), Served::Done);
    assert_eq!(received(&wire), Some(sent));
    assert_eq!(rig.tx.used(), Some((0, 0)));
    assert_eq!(rig.interrupt.take_queues(), [1]);
}

#[test]
fn without_a_wire_frames_are_lost_and_buffers_come_back() {
    let mut rig = Rig::new(0, 16);
    let buffer = rig.tx.readable(&frame(60));
    rig.tx.add(&[buffer]);
    assert_eq!(rig.handler.serve(TX_KICK), Served::Done);
    assert_eq!(rig.tx.used(), Some((0, 0)));
}

#[test]
fn what_is_no_frame_is_not_sent() {
    let mut rig = Rig::new(0, 16);
    let (_port, wire) = rig.attach();
    let short = rig.tx.readable(&HEADER);
    let outside = Buffer {
        address: 1 << 40,
        length: 100,
        flags: 0,
    };
    let long = Buffer {
        address: 0,
        length: FRAME_BYTES_MAX as u32 + 1,
        flags: 0,
    };
    let writable = rig.tx.writable(100);
    for buffer in [short, outside, long, writable] {
        rig.tx.add(&[buffer]);
    }
    assert_eq!(rig.handler.serve(TX_KICK), Served::Done);
    assert_eq!(received(&wire), None);
    let given_back = std::iter::from_fn(|| rig.tx.used()).count();
    assert_eq!(given_back, 4);
}

#[test]
fn a_frame_is_spread_over_as_many_buffers_as_it_needs() {
    let mut rig = Rig::new(MERGEABLE, 64);
    let (_port, wire) = rig.attach();
    rig.offer(&[1500; 60]);
    wire.send(&frame(4000)).unwrap();
    wire.send(&frame(60)).unwrap();
    rig.wake();
    assert_eq!(rig.arrived(), [frame(4000), frame(60)]);
    assert_eq!(rig.interrupt.take_queues(), [0]);
    assert!(rig.is_listening());
}

#[test]
fn a_frame_longer_than_what_is_offered_waits_for_more() {
    let mut rig = Rig::new(MERGEABLE, 16);
    let (_port, wire) = rig.attach();
    rig.offer(&[500; 2]);
    wire.send(&frame(2000)).unwrap();
    rig.wake();
    assert!(rig.arrived().is_empty());
    assert!(!rig.is_listening(), "the wire has to wait");
    rig.offer(&[500]);
    assert_eq!(rig.handler.serve(RX_KICK), Served::SourcesChanged);
    assert!(rig.arrived().is_empty());
    rig.offer(&[500; 3]);
    rig.handler.serve(RX_KICK);
    assert_eq!(rig.arrived(), [frame(2000)]);
    assert!(rig.is_listening());
}

#[test]
fn a_driver_without_buffers_is_not_polled_until_it_kicks() {
    let mut rig = Rig::new(MERGEABLE, 16);
    let (_port, wire) = rig.attach();
    wire.send(&frame(60)).unwrap();
    assert_eq!(rig.wake()[1], Served::SourcesChanged);
    assert!(!rig.is_listening());
    rig.offer(&[200]);
    assert_eq!(rig.handler.serve(RX_KICK), Served::SourcesChanged);
    assert_eq!(rig.arrived(), [frame(60)]);
}

#[test]
fn without_mergeable_buffers_a_frame_that_does_not_fit_is_lost() {
    let mut rig = Rig::new(0, 16);
    let (_port, wire) = rig.attach();
    rig.offer(&[200; 3]);
    wire.send(&frame(189)).unwrap();
    wire.send(&frame(60)).unwrap();
    rig.wake();
    assert_eq!(rig.arrived(), [frame(60)]);
}

#[test]
fn a_buffer_that_can_not_hold_a_header_comes_back_empty() {
    let mut rig = Rig::new(MERGEABLE, 16);
    let (_port, wire) = rig.attach();
    rig.offer(&[11]);
    let outside = Buffer {
        address: 1 << 40,
        length: 1000,
        flags: WRITE,
    };
    rig.rx.add(&[outside]);
    rig.offer(&[100]);
    wire.send(&frame(60)).unwrap();
    rig.wake();
    assert_eq!(rig.used(), Some(vec![]));
    assert_eq!(rig.rx.used(), Some((1, 0)));
    assert_eq!(rig.arrived(), [frame(60)]);
}

#[test]
fn a_port_that_ends_takes_the_link_down() {
    let mut rig = Rig::new(MERGEABLE, 16);
    let (port, _wire) = rig.attach();
    rig.offer(&[100]);
    port.ended.store(true, Ordering::SeqCst);
    assert_eq!(rig.wake()[1], Served::SourcesChanged);
    assert_eq!((rig.status(), rig.interrupt.configs()), (0, 2));
    assert!(!rig.is_listening());
    // Another can come.
    let (_port, wire) = rig.attach();
    wire.send(&frame(60)).unwrap();
    rig.wake();
    assert!(rig.rx.used().is_some());
}

#[test]
fn the_port_learns_which_frames_the_driver_takes() {
    let features = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO4;
    let mut rig = Rig::new(features, 16);
    let (port, _wire) = rig.attach();
    let wanted = Offloads {
        checksum: true,
        tso4: true,
        ..Offloads::default()
    };
    assert_eq!(port.offloads(), Some(wanted));
    // Segments without partial checksums don't exist.
    assert_eq!(
        Offloads::of(1 << VIRTIO_NET_F_GUEST_TSO4),
        Offloads::default()
    );
}

#[test]
fn an_available_index_that_is_too_far_ahead_breaks_the_device() {
    let mut rig = Rig::new(MERGEABLE, 16);
    let (_port, wire) = rig.attach();
    wire.send(&frame(60)).unwrap();
    rig.rx.set_available_index(17);
    assert_eq!(rig.wake()[1], Served::Broken);
    rig.tx.set_available_index(17);
    assert_eq!(rig.handler.serve(TX_KICK), Served::Broken);
}

proptest! {
    /// However frames and buffers are cut, every frame arrives once, whole and in order.
    #[test]
    fn every_frame_arrives_whole(
        lengths in prop::collection::vec(1usize..5000, 1..20),
        buffers in prop::collection::vec(40usize..2000, 1..400),
    ) {
        let mut rig = Rig::new(MERGEABLE, 256);
        let (_port, wire) = rig.attach();
        let mut arrived = Vec::new();
        let mut sizes = buffers.iter().cycle();
        let mut to_send = lengths.iter();
        for _ in 0..lengths.len() * 10 {
            if let Some(length) = to_send.next() {
                wire.send(&frame(*length)).unwrap();
            }
            // As many as the ring takes, of which the smallest hold the longest frame.
            while rig.offered.len() < 250 {
                rig.offer(&[*sizes.next().unwrap()]);
            }
            rig.handler.serve(RX_KICK);
            rig.wake();
            arrived.extend(rig.arrived());
        }
        let sent: Vec<_> = lengths.iter().map(|length| frame(*length)).collect();
        prop_assert_eq!(arrived, sent);
    }
}
