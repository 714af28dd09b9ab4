//! The serial console and the reset line under any access.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmbox_devices::legacy::{i8042, serial::Serial};
use vmbox_fuzz::Input;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let irq = EventFd::new(EFD_NONBLOCK).expect("a descriptor is free");
    let mut serial = Serial::new(Box::new(std::io::sink()), irq);
    while !input.is_empty() {
        let operation = input.u8();
        let offset = if operation & 0x80 == 0 { u64::from(input.u8() % 9) } else { input.u64() };
        let mut one = input.take::<1>();
        match operation % 6 {
            0 | 1 => serial.write(offset, &one),
            2 => serial.read(offset, &mut one),
            3 => serial.write(offset, &input.bytes()),
            4 => {
                let _ = i8042::write(offset as u16, &input.bytes());
            }
            _ => {
                let mut bytes = input.bytes();
                serial.read(offset, &mut bytes);
                i8042::read(offset as u16, &mut bytes);
            }
        }
    }
});
