//! Tests of the balloon device against a driver that is honest, and one that is not.

use std::sync::Mutex;

use super::*;
use crate::testing::{Buffer, DriverQueue, FakeInterrupt, NEXT, WRITE, activation, ram};

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
    device: Balloon,
    handler: Box<dyn Handler>,
    queues: [DriverQueue; 3],
    ranges: Arc<Ranges>,
    interrupt: Arc<FakeInterrupt>,
}

impl Fixture {
    fn new() -> Self {
        let memory = ram(4);
        let queues = [0, 1, 2].map(|index| DriverQueue::new(&memory, index, 16));
        let ranges = Arc::new(Ranges::default());
        let interrupt = Arc::new(FakeInterrupt::default());
        let mut device = Balloon::new(ranges.clone());
        let activation = activation(&[&queues[0], &queues[1], &queues[2]], 0, interrupt.clone());
        let handler = device.activate(activation).unwrap();
        Self {
            device,
            handler,
            queues,
            ranges,
            interrupt,
        }
    }

    fn inflate(&mut self, pages: &[u32]) -> Served {
        let bytes: Vec<u8> = pages.iter().flat_map(|p| p.to_le_bytes()).collect();
        let buffer = self.queues[0].readable(&bytes);
        self.queues[0].add(&[buffer]);
        self.handler.serve(Event::Queue(0))
    }

    fn report(&mut self, ranges: &[(u64, u32)]) -> Served {
        let buffers: Vec<Buffer> = ranges
            .iter()
            .map(|(address, length)| Buffer {
                address: *address,
                length: *length,
                flags: WRITE,
            })
            .collect();
        self.queues[2].add(&buffers);
        self.handler.serve(Event::Queue(2))
    }

    fn reclaimed(&self) -> Vec<(u64, u64)> {
        self.ranges.0.lock().unwrap().clone()
    }
}

#[test]
fn inflated_pages_are_given_back_run_by_run() {
    let mut balloon = Fixture::new();
    assert_eq!(balloon.inflate(&[5, 6, 7, 3, 2, 900]), Served::Done);
    assert_eq!(
        balloon.reclaimed(),
        [(5 << 12, 3 << 12), (2 << 12, 2 << 12), (900 << 12, 1 << 12)]
    );
    assert_eq!(balloon.queues[0].used(), Some((0, 0)));
    assert_eq!(balloon.interrupt.take_queues(), [0]);
}

#[test]
fn more_pages_than_one_batch_are_one_run() {
    let mut balloon = Fixture::new();
    balloon.inflate(&(100..700).collect::<Vec<u32>>());
    assert_eq!(balloon.reclaimed(), [(100 << 12, 600 << 12)]);
}

#[test]
fn pages_outside_of_ram_are_ignored() {
    let mut balloon = Fixture::new();
    assert_eq!(balloon.inflate(&[u32::MAX, 1024, 1023]), Served::Done);
    // 1024 and 1023 make a run that ends outside of RAM, so nothing of it can be trusted.
    assert_eq!(balloon.reclaimed(), []);
}

#[test]
fn reported_ranges_shrink_to_whole_pages() {
    let mut balloon = Fixture::new();
    let ranges = [
        (0x20_0000, 0x1_0000),
        (0x30_0001, 0x2000),
        (0x1000, 0xfff),
        (0, 0),
    ];
    assert_eq!(balloon.report(&ranges), Served::Done);
    assert_eq!(
        balloon.reclaimed(),
        [(0x20_0000, 0x1_0000), (0x30_1000, 0x1000)]
    );
}

#[test]
fn impossible_ranges_are_ignored() {
    let mut balloon = Fixture::new();
    let ranges = [
        (u64::MAX, 1),
        (u64::MAX - 4096, u32::MAX),
        (1 << 40, 4096),
        (0x3f_f000, 8192),
    ];
    assert_eq!(balloon.report(&ranges), Served::Done);
    assert_eq!(balloon.reclaimed(), []);
}

#[test]
fn buffers_of_the_wrong_direction_are_ignored() {
    let mut balloon = Fixture::new();
    let writable = balloon.queues[0].writable(8);
    balloon.queues[0].add(&[writable]);
    let readable = balloon.queues[2].readable(&[0; 4096]);
    balloon.queues[2].add(&[readable]);
    assert_eq!(balloon.handler.serve(Event::Queue(0)), Served::Done);
    assert_eq!(balloon.handler.serve(Event::Queue(2)), Served::Done);
    assert_eq!(balloon.reclaimed(), []);
}

#[test]
fn a_descriptor_loop_ends() {
    let mut balloon = Fixture::new();
    let buffer = balloon.queues[2].writable(8192);
    balloon.queues[2].set_descriptor(0, buffer, NEXT, 0);
    balloon.queues[2].publish(0);
    assert_eq!(balloon.handler.serve(Event::Queue(2)), Served::Done);
    assert_eq!(balloon.reclaimed().len(), 16);
}

#[test]
fn an_impossible_available_index_breaks_the_device() {
    let mut balloon = Fixture::new();
    balloon.queues[1].set_available_index(99);
    assert_eq!(balloon.handler.serve(Event::Queue(1)), Served::Broken);
}

#[test]
fn a_new_target_is_announced_and_readable() {
    let balloon = Fixture::new();
    balloon.device.handle().set_target_mib(3);
    let mut config = [0; 4];
    balloon.device.read_config(0, &mut config);
    assert_eq!(u32::from_le_bytes(config), 3 * 256);
    assert_eq!(balloon.interrupt.configs(), 1);
}

#[test]
fn a_target_set_while_the_driver_is_away_interrupts_nobody() {
    let balloon = Fixture::new();
    drop(balloon.handler);
    balloon.device.handle().set_target_mib(3);
    assert_eq!(balloon.interrupt.configs(), 0);
}

#[test]
fn the_driver_reports_its_size_and_can_not_move_the_target() {
    let mut balloon = Fixture::new();
    balloon.device.write_config(4, &512u32.to_le_bytes());
    balloon.device.write_config(0, &512u32.to_le_bytes());
    balloon.device.write_config(u64::MAX, &[1]);
    assert_eq!(balloon.device.handle().actual_mib(), 2);
    let mut target = [0xff; 12];
    balloon.device.read_config(0, &mut target);
    assert_eq!(target, [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn without_a_reporting_queue_the_balloon_still_inflates() {
    let memory = ram(4);
    let queues = [0, 1].map(|index| DriverQueue::new(&memory, index, 16));
    let interrupt = Arc::new(FakeInterrupt::default());
    let activation = activation(&[&queues[0], &queues[1]], 0, interrupt);
    let mut handler = Balloon::new(Arc::new(Ranges::default()))
        .activate(activation)
        .unwrap();
    assert_eq!(handler.serve(Event::Queue(2)), Served::Done);
    assert_eq!(handler.serve(Event::Queue(0)), Served::Done);
}
