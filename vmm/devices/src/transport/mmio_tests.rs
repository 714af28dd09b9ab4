//! Tests of the register block with a device that reports its life, and any sequence of accesses.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::device::{ActivateError, Event, Handler, Served, SharedMemory};
use crate::testing::{DriverQueue, ram};
use crate::worker::Worker;

const FEATURE: u64 = 1 << 3;
const QUEUE_SIZE: u16 = 16;

/// A device with two queues, a writable configuration byte and a shared memory region.
struct Probe {
    events: Sender<Event>,
    handlers: Arc<AtomicU32>,
    config: u8,
}

struct ProbeHandler {
    queues: Vec<Virtqueue>,
    events: Sender<Event>,
    handlers: Arc<AtomicU32>,
}

impl VirtioDevice for Probe {
    fn profile(&self) -> Profile {
        Profile {
            device_id: 42,
            name: "probe",
            features: FEATURE,
            queue_sizes: vec![QUEUE_SIZE, QUEUE_SIZE],
            shared_memory: vec![SharedMemory {
                id: 1,
                base: 0x12_3456_7000,
                length: 0x2_0000_0000,
            }],
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::read_bytes(&[self.config], offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (0, [byte]) = (offset, data) {
            self.config = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        if !activation.queues.first().is_some_and(Virtqueue::is_enabled) {
            return Err(ActivateError::QueueMissing(0));
        }
        self.handlers.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(ProbeHandler {
            queues: activation.queues,
            events: self.events.clone(),
            handlers: self.handlers.clone(),
        }))
    }
}

impl Handler for ProbeHandler {
    fn serve(&mut self, event: Event) -> Served {
        let Event::Queue(index) = event else {
            return Served::Done;
        };
        let served = self.queues[usize::from(index)].drain(|_| 0);
        let _ = self.events.send(event);
        if served.is_ok() {
            Served::Done
        } else {
            Served::Broken
        }
    }
}

impl Drop for ProbeHandler {
    fn drop(&mut self) {
        self.handlers.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Fixture {
    transport: MmioTransport,
    driver: DriverQueue,
    irq: EventFd,
    events: Receiver<Event>,
    handlers: Arc<AtomicU32>,
    _worker: Worker,
}

impl Fixture {
    fn new() -> Self {
        let worker = Worker::spawn("probe").unwrap();
        let memory = ram(2);
        let irq = EventFd::new(0).unwrap();
        let (sender, events) = channel();
        let handlers = Arc::new(AtomicU32::new(0));
        let device = Box::new(Probe {
            events: sender,
            handlers: handlers.clone(),
            config: 7,
        });
        let transport = MmioTransport::new(
            device,
            memory.clone(),
            irq.try_clone().unwrap(),
            worker.handle(),
        )
        .unwrap();
        Self {
            transport,
            driver: DriverQueue::new(&memory, 0, QUEUE_SIZE),
            irq,
            events,
            handlers,
            _worker: worker,
        }
    }

    /// A fixture whose driver has gone through all of §3.1.1.
    fn live() -> Self {
        let mut fixture = Self::new();
        fixture.negotiate(FEATURE | 1 << 32);
        fixture.set_up_queue(&[]);
        fixture.write(reg::STATUS, 15);
        fixture
    }

    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn negotiate(&mut self, features: u64) {
        self.write(reg::STATUS, 1);
        self.write(reg::STATUS, 3);
        for select in [0, 1] {
            self.write(reg::DRIVER_FEATURES_SEL, select);
            self.write(reg::DRIVER_FEATURES, half(features, select));
        }
        self.write(reg::STATUS, 11);
    }

    /// Sets queue 0 up, with some registers other than they should be.
    fn set_up_queue(&mut self, instead: &[(u64, u32)]) {
        let right = [
            (reg::QUEUE_SEL, 0),
            (reg::QUEUE_NUM, u32::from(QUEUE_SIZE)),
            (reg::QUEUE_DESC_LOW, self.driver.descriptors() as u32),
            (reg::QUEUE_DRIVER_LOW, self.driver.available_ring() as u32),
            (reg::QUEUE_DEVICE_LOW, self.driver.used_ring() as u32),
        ];
        for (register, value) in right.iter().chain(instead) {
            self.write(*register, *value);
        }
        self.write(reg::QUEUE_READY, 1);
    }

    fn next_event(&self) -> Event {
        self.events.recv_timeout(Duration::from_secs(20)).unwrap()
    }

    fn needs_reset(&mut self) -> bool {
        self.read(reg::STATUS) & u32::from(NEEDS_RESET) != 0
    }
}

/// A driver that writes one impossible value while it sets queue 0 up must be told to reset.
fn assert_queue_is_refused(register: u64, value: u32) {
    let mut fixture = Fixture::new();
    fixture.negotiate(1 << 32);
    fixture.set_up_queue(&[(register, value)]);
    fixture.write(reg::STATUS, 15);
    assert!(fixture.needs_reset(), "register {register:#x} = {value:#x}");
    assert_eq!(fixture.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(fixture.handlers.load(Ordering::SeqCst), 0);
}

#[test]
fn a_driver_finds_the_device() {
    let mut fixture = Fixture::new();
    assert_eq!(fixture.read(0x000), u32::from_le_bytes(*b"virt"));
    assert_eq!(fixture.read(0x004), 2);
    assert_eq!(fixture.read(0x008), 42);
}

#[test]
fn the_transports_features_are_offered_beside_the_devices() {
    let mut fixture = Fixture::new();
    assert_eq!(
        fixture.read(reg::DEVICE_FEATURES),
        1 << 3 | 1 << 28 | 1 << 29
    );
    fixture.write(reg::DEVICE_FEATURES_SEL, 1);
    assert_eq!(fixture.read(reg::DEVICE_FEATURES), 1);
    fixture.write(reg::DEVICE_FEATURES_SEL, 2);
    assert_eq!(fixture.read(reg::DEVICE_FEATURES), 0);
}

#[test]
fn features_that_were_not_offered_are_not_ok() {
    let mut fixture = Fixture::new();
    fixture.negotiate(1 << 32 | 1 << 5);
    assert_eq!(fixture.read(reg::STATUS), 3);
}

#[test]
fn a_legacy_driver_is_not_ok() {
    let mut fixture = Fixture::new();
    fixture.negotiate(FEATURE);
    assert_eq!(fixture.read(reg::STATUS), 3);
}

#[test]
fn a_kick_through_the_register_is_served_and_interrupts() {
    let mut fixture = Fixture::live();
    assert_eq!(fixture.read(reg::STATUS), 15);
    let buffer = fixture.driver.writable(4);
    fixture.driver.add(&[buffer]);
    fixture.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.next_event(), Event::Queue(0));
    assert_eq!(fixture.irq.read().unwrap(), 1);
    assert_eq!(fixture.driver.used(), Some((0, 0)));
    assert_eq!(fixture.read(reg::INTERRUPT_STATUS), 1);
    fixture.write(reg::INTERRUPT_ACK, 1);
    assert_eq!(fixture.read(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn a_kick_through_the_event_descriptor_is_the_same() {
    let fixture = Fixture::live();
    fixture.transport.queue_kicks()[0].write(1).unwrap();
    assert_eq!(fixture.next_event(), Event::Queue(0));
}

#[test]
fn a_kick_of_a_queue_that_is_not_enabled_does_nothing() {
    let mut fixture = Fixture::live();
    fixture.write(reg::QUEUE_NOTIFY, 1);
    fixture.write(reg::QUEUE_NOTIFY, u32::MAX);
    fixture.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.next_event(), Event::Queue(0));
    assert!(!fixture.needs_reset());
}

#[test]
fn reset_drops_the_handler_at_once_and_the_device_can_be_driven_again() {
    let mut fixture = Fixture::live();
    assert_eq!(fixture.handlers.load(Ordering::SeqCst), 1);
    fixture.write(reg::STATUS, 0);
    assert_eq!(fixture.handlers.load(Ordering::SeqCst), 0);
    assert_eq!(fixture.read(reg::STATUS), 0);
    assert_eq!(fixture.read(reg::QUEUE_READY), 0);
    fixture.negotiate(1 << 32);
    fixture.set_up_queue(&[]);
    fixture.write(reg::STATUS, 15);
    assert_eq!(fixture.read(reg::STATUS), 15);
    assert_eq!(fixture.handlers.load(Ordering::SeqCst), 1);
}

#[test]
fn reset_drops_pending_requests() {
    let mut fixture = Fixture::live();
    let buffer = fixture.driver.writable(4);
    fixture.driver.add(&[buffer]);
    fixture.write(reg::STATUS, 0);
    fixture.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.driver.used(), None);
    assert_eq!(fixture.read(reg::INTERRUPT_STATUS), 0);
}

#[test]
fn impossible_queues_need_a_reset() {
    assert_queue_is_refused(reg::QUEUE_NUM, 0);
    assert_queue_is_refused(reg::QUEUE_NUM, 3);
    assert_queue_is_refused(reg::QUEUE_NUM, 32);
    assert_queue_is_refused(reg::QUEUE_NUM, 0x1_0010);
    assert_queue_is_refused(reg::QUEUE_DESC_LOW, 0x1_0001);
    assert_queue_is_refused(reg::QUEUE_DESC_HIGH, 1);
    assert_queue_is_refused(reg::QUEUE_DRIVER_HIGH, u32::MAX);
    assert_queue_is_refused(reg::QUEUE_DRIVER_LOW, 0);
    assert_queue_is_refused(reg::QUEUE_DEVICE_LOW, 0x1f_fffc);
}

#[test]
fn a_queue_that_ends_with_ram_is_fine() {
    let mut fixture = Fixture::new();
    fixture.negotiate(1 << 32);
    let used_ring_bytes = 6 + 8 * u32::from(QUEUE_SIZE);
    fixture.set_up_queue(&[(
        reg::QUEUE_DEVICE_LOW,
        0x20_0000 - used_ring_bytes.next_multiple_of(4),
    )]);
    fixture.write(reg::STATUS, 15);
    assert_eq!(fixture.read(reg::STATUS), 15);
}

#[test]
fn a_device_that_can_not_be_activated_needs_a_reset() {
    let mut fixture = Fixture::new();
    fixture.negotiate(1 << 32);
    fixture.write(reg::STATUS, 15);
    assert!(fixture.needs_reset());
    fixture.write(reg::STATUS, 0);
    assert_eq!(fixture.read(reg::STATUS), 0);
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let mut fixture = Fixture::live();
    fixture.driver.set_available_index(1000);
    fixture.write(reg::QUEUE_NOTIFY, 0);
    assert_eq!(fixture.next_event(), Event::Queue(0));
    // The configuration interrupt follows the handler's answer.
    fixture.irq.read().unwrap();
    while fixture.read(reg::INTERRUPT_STATUS) & 2 == 0 {
        fixture.irq.read().unwrap();
    }
    assert!(fixture.needs_reset());
}

#[test]
fn a_live_queue_can_not_be_changed() {
    let mut fixture = Fixture::live();
    fixture.write(reg::QUEUE_READY, 0);
    assert_eq!(fixture.read(reg::QUEUE_READY), 1);
}

#[test]
fn a_configuration_change_counts_up_and_interrupts_a_live_driver_only() {
    let mut fixture = Fixture::new();
    fixture.transport.config_changed();
    assert_eq!(fixture.read(reg::CONFIG_GENERATION), 1);
    assert_eq!(fixture.read(reg::INTERRUPT_STATUS), 0);
    let mut fixture = Fixture::live();
    fixture.transport.config_changed();
    assert_eq!(fixture.read(reg::INTERRUPT_STATUS), 2);
    assert_eq!(fixture.irq.read().unwrap(), 1);
}

#[test]
fn shared_memory_is_described_and_an_absent_region_reads_as_all_ones() {
    let mut fixture = Fixture::new();
    let registers = [
        reg::SHM_LEN_LOW,
        reg::SHM_LEN_HIGH,
        reg::SHM_BASE_LOW,
        reg::SHM_BASE_HIGH,
    ];
    assert_eq!(registers.map(|r| fixture.read(r)), [u32::MAX; 4]);
    fixture.write(reg::SHM_SEL, 1);
    assert_eq!(
        registers.map(|r| fixture.read(r)),
        [0, 2, 0x3456_7000, 0x12]
    );
    fixture.write(reg::SHM_SEL, 0x101);
    assert_eq!(registers.map(|r| fixture.read(r)), [u32::MAX; 4]);
}

#[test]
fn configuration_space_takes_any_width() {
    let mut fixture = Fixture::new();
    let mut byte = [0];
    fixture.transport.write(reg::CONFIG, &[9]);
    fixture.transport.read(reg::CONFIG, &mut byte);
    assert_eq!(byte, [9]);
    let mut beyond = [0xff; 8];
    fixture.transport.read(u64::MAX, &mut beyond);
    assert_eq!(beyond, [0; 8]);
}

#[test]
fn registers_take_32_bits_only() {
    let mut fixture = Fixture::new();
    let mut byte = [0xff];
    fixture.transport.read(reg::MAGIC_VALUE, &mut byte);
    assert_eq!(byte, [0]);
    fixture.transport.write(reg::STATUS, &[1]);
    assert_eq!(fixture.read(reg::STATUS), 0);
}

/// One access: mostly registers that exist and values that lead somewhere.
fn access() -> impl Strategy<Value = (u64, u32, usize)> {
    let offset = prop_oneof![8 => (0u64..0x44).prop_map(|n| n * 4), 1 => any::<u64>()];
    let value = prop_oneof![
        4 => Just(1u32), 2 => Just(3), 2 => Just(11), 2 => Just(15), 1 => Just(0), 2 => Just(0x1_0000), 2 => any::<u32>()
    ];
    (
        offset,
        value,
        prop_oneof![9 => Just(4usize), 1 => 0usize..9],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_accesses_panics(start_live: bool, accesses in prop::collection::vec(access(), 0..200)) {
        let mut fixture = if start_live { Fixture::live() } else { Fixture::new() };
        for (offset, value, width) in accesses {
            let mut data = [0; 9];
            data[..4].copy_from_slice(&value.to_le_bytes());
            fixture.transport.write(offset, &data[..width]);
            fixture.transport.read(offset, &mut data[..width]);
        }
        fixture.write(reg::STATUS, 0);
        prop_assert_eq!(fixture.read(reg::STATUS), 0);
        prop_assert_eq!(fixture.handlers.load(Ordering::SeqCst), 0);
    }
}
