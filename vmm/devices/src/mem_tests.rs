//! Tests of the memory device against a driver that is honest, and one that is not.

use std::io;

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, WRITE, activation, ram};

const BASE: u64 = 1 << 32;
const MIB: u64 = 1 << 20;

/// Remembers what was given back.
#[derive(Default)]
struct Ranges(Mutex<Vec<(u64, u64)>>);

impl Reclaim for Ranges {
    fn reclaim(&self, address: GuestAddress, length: u64) -> io::Result<()> {
        self.0.lock().unwrap().push((address.0, length));
        Ok(())
    }
}

struct Fixture {
    device: Mem,
    handler: Box<dyn Handler>,
    queue: DriverQueue,
    ranges: Arc<Ranges>,
    interrupt: Arc<FakeInterrupt>,
    changed: EventFd,
}

impl Fixture {
    /// A region of 256 MiB, of which `requested_mib` are asked for.
    fn new(requested_mib: u64) -> Self {
        let ranges = Arc::new(Ranges::default());
        let changed = EventFd::new(EFD_NONBLOCK).unwrap();
        let told = changed.try_clone().unwrap();
        let mut device = Mem::new(BASE, 256 * MIB, ranges.clone(), told);
        device.handle().request(requested_mib * MIB);
        let interrupt = Arc::new(FakeInterrupt::default());
        let queue = DriverQueue::new(&ram(2), 0, 16);
        let handler = device
            .activate(activation(&[&queue], 0, interrupt.clone()))
            .unwrap();
        Self {
            device,
            handler,
            queue,
            ranges,
            interrupt,
            changed,
        }
    }

    /// Type and state of the response.
    fn ask(&mut self, kind: u16, address: u64, blocks: u16) -> (u16, u16) {
        let mut request = vec![0; REQUEST_BYTES];
        request[..2].copy_from_slice(&kind.to_le_bytes());
        request[8..16].copy_from_slice(&address.to_le_bytes());
        request[16..18].copy_from_slice(&blocks.to_le_bytes());
        let request = self.queue.readable(&request);
        let response = self.queue.writable(RESPONSE_BYTES);
        self.queue.add(&[request, response]);
        assert_eq!(self.handler.serve(Event::Queue(0)), Served::Done);
        assert_eq!(self.queue.used().unwrap().1, RESPONSE_BYTES as u32);
        let bytes = self.queue.bytes(response);
        (
            u16::from_le_bytes([bytes[0], bytes[1]]),
            u16::from_le_bytes([bytes[8], bytes[9]]),
        )
    }

    fn verdict(&mut self, kind: u16, address: u64, blocks: u16) -> u16 {
        self.ask(kind, address, blocks).0
    }

    fn config(&self, field: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read_config(8 * field, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn plugged_mib(&self) -> u64 {
        self.device.handle().plugged_bytes() / MIB
    }
}

const ACK: u16 = Verdict::Ack as u16;
const NACK: u16 = Verdict::Nack as u16;
const ERROR: u16 = Verdict::Error as u16;

#[test]
fn the_driver_plugs_what_is_asked_for_and_no_more() {
    let mut mem = Fixture::new(6);
    assert!(!mem.device.handle().is_served());
    assert_eq!(mem.verdict(REQUEST_PLUG, BASE, 2), ACK);
    assert_eq!(mem.verdict(REQUEST_PLUG, BASE + 8 * MIB, 2), NACK);
    assert_eq!(mem.verdict(REQUEST_PLUG, BASE + 8 * MIB, 1), ACK);
    assert_eq!(mem.plugged_mib(), 6);
    assert!(mem.device.handle().is_served());
    assert_eq!(mem.changed.read().unwrap(), 2);
}

#[test]
fn what_is_unplugged_is_given_back() {
    let mut mem = Fixture::new(8);
    mem.verdict(REQUEST_PLUG, BASE, 4);
    mem.device.handle().request(0);
    assert!(mem.device.handle().is_served());
    assert_eq!(mem.verdict(REQUEST_UNPLUG, BASE + 2 * MIB, 2), ACK);
    assert_eq!(mem.plugged_mib(), 4);
    let given = mem.ranges.0.lock().unwrap().clone();
    assert_eq!(given, [(BASE + 2 * MIB, 4 * MIB)]);
}

#[test]
fn all_is_unplugged_at_once() {
    let mut mem = Fixture::new(8);
    mem.verdict(REQUEST_PLUG, BASE, 4);
    assert_eq!(mem.verdict(REQUEST_UNPLUG_ALL, 0, 0), ACK);
    assert_eq!(mem.plugged_mib(), 0);
    let given = mem.ranges.0.lock().unwrap().clone();
    assert_eq!(given, [(BASE, 128 * MIB)]);
}

#[test]
fn blocks_change_only_from_the_other_state() {
    let mut mem = Fixture::new(64);
    mem.verdict(REQUEST_PLUG, BASE, 4);
    assert_eq!(mem.verdict(REQUEST_PLUG, BASE + 6 * MIB, 2), ERROR);
    assert_eq!(mem.verdict(REQUEST_UNPLUG, BASE + 6 * MIB, 2), ERROR);
    assert_eq!(mem.plugged_mib(), 8);
}

#[test]
fn states_are_told() {
    let mut mem = Fixture::new(64);
    mem.verdict(REQUEST_PLUG, BASE, 2);
    assert_eq!(mem.ask(REQUEST_STATE, BASE, 2), (ACK, 0));
    assert_eq!(mem.ask(REQUEST_STATE, BASE + 4 * MIB, 2), (ACK, 1));
    assert_eq!(mem.ask(REQUEST_STATE, BASE + 2 * MIB, 2), (ACK, 2));
}

#[test]
fn ranges_that_are_not_of_the_usable_region_are_errors() {
    let mut mem = Fixture::new(64);
    for (address, blocks) in [
        (BASE, 0),
        (BASE + MIB, 1),
        (BASE - 2 * MIB, 1),
        (BASE + 126 * MIB, 2),
        (BASE + 128 * MIB, 1),
        (BASE, u16::MAX),
        (0, 1),
        (u64::MAX - 2 * MIB + 1, 1),
    ] {
        for kind in [REQUEST_PLUG, REQUEST_UNPLUG, REQUEST_STATE, 4] {
            assert_eq!(mem.verdict(kind, address, blocks), ERROR, "{address:#x}");
        }
    }
    assert_eq!(mem.plugged_mib(), 0);
}

#[test]
fn a_request_is_announced_and_readable() {
    let mem = Fixture::new(0);
    mem.device.handle().request(129 * MIB);
    assert_eq!(mem.interrupt.configs(), 1);
    let fields = [0, 1, 2, 3, 4, 5, 6].map(|field| mem.config(field));
    let usable = 256 * MIB;
    assert_eq!(fields, [2 * MIB, 0, BASE, 256 * MIB, usable, 0, 130 * MIB]);
    mem.device.handle().request(u64::MAX / 2);
    assert_eq!(mem.config(6), 256 * MIB);
}

#[test]
fn the_usable_region_never_shrinks() {
    let mem = Fixture::new(129);
    mem.device.handle().request(0);
    assert_eq!(mem.config(4), 256 * MIB);
}

#[test]
fn a_request_outside_of_ram_is_an_error_and_a_short_response_is_cut() {
    let mut mem = Fixture::new(64);
    let bad = Buffer {
        address: u64::MAX - 1,
        length: 24,
        flags: 0,
    };
    let short = mem.queue.writable(2);
    mem.queue.add(&[bad, short]);
    assert_eq!(mem.handler.serve(Event::Queue(0)), Served::Done);
    assert_eq!(mem.queue.used(), Some((0, 2)));
    assert_eq!(mem.queue.bytes(short), ERROR.to_le_bytes());
    let nowhere = Buffer {
        address: 1 << 60,
        length: 64,
        flags: WRITE,
    };
    mem.queue.add(&[nowhere]);
    assert_eq!(mem.handler.serve(Event::Queue(0)), Served::Done);
    assert_eq!(mem.queue.used().unwrap().1, 0);
}

#[test]
fn an_impossible_available_index_breaks_the_device() {
    let mut mem = Fixture::new(0);
    mem.queue.set_available_index(99);
    assert_eq!(mem.handler.serve(Event::Queue(0)), Served::Broken);
}
