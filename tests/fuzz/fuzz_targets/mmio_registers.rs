//! The MMIO register block with a real worker behind it: any accesses, then a reset that must always succeed.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::rng::Rng;
use vmbox_devices::testing::{DriverQueue, ram};
use vmbox_devices::transport::MmioTransport;
use vmbox_devices::worker::Worker;
use vmbox_fuzz::Input;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const STATUS: u64 = 0x70;
static WORKER: OnceLock<Worker> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let worker = WORKER.get_or_init(|| Worker::spawn("fuzz").expect("a thread can be started"));
    let memory = ram(1);
    let mut driver = DriverQueue::new(&memory, 0, 16);
    let irq = EventFd::new(EFD_NONBLOCK).expect("a descriptor is free");
    let rng = Box::new(Rng::new().expect("/dev/random opens"));
    let mut transport =
        MmioTransport::new(rng, memory.clone(), irq, worker.handle()).expect("a descriptor is free");
    let mut input = Input(data);
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => go_live(&mut transport, &driver),
            1 => {
                let _ = memory.write_slice(&input.bytes(), GuestAddress(input.address()));
            }
            2 => {
                let buffer = input.buffer();
                driver.add(&[buffer]);
                write(&mut transport, 0x50, 0);
            }
            3 => {
                let offset = input.u64() >> (input.u8() % 64);
                let mut bytes = input.bytes();
                transport.write(offset, &bytes);
                transport.read(offset, &mut bytes);
            }
            4 => transport.config_changed(),
            5 => write(&mut transport, STATUS, u32::from(input.u8())),
            _ => {
                let register = u64::from(input.u8() % 0x44) * 4;
                write(&mut transport, register, input.u32());
                transport.read(register, &mut [0; 4]);
            }
        }
    }
    write(&mut transport, STATUS, 0);
    let mut status = [0xff; 4];
    transport.read(STATUS, &mut status);
    assert_eq!(status, [0; 4]);
});

fn write(transport: &mut MmioTransport, register: u64, value: u32) {
    transport.write(register, &value.to_le_bytes());
}

/// What a correct driver does; registers that the input has set before stay as they are.
fn go_live(transport: &mut MmioTransport, driver: &DriverQueue) {
    for (register, value) in [
        (STATUS, 1),
        (STATUS, 3),
        (0x24, 1),
        (0x20, 1),
        (STATUS, 11),
        (0x30, 0),
        (0x38, 16),
        (0x80, driver.descriptors() as u32),
        (0x90, driver.available_ring() as u32),
        (0xa0, driver.used_ring() as u32),
        (0x44, 1),
        (STATUS, 15),
    ] {
        write(transport, register, value);
    }
}
