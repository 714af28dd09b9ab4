//! The balloon under any ring content: what is given back must always be whole pages of RAM.
#![no_main]

use std::io;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::balloon::{Balloon, Reclaim};
use vmbox_devices::testing::Buffer;
use vmbox_fuzz::{Input, RAM_BYTES, Rig};

const NUMBERS: u64 = 0x9_0000;

struct Checker;

impl Reclaim for Checker {
    fn reclaim(&self, address: GuestAddress, length: u64) -> io::Result<()> {
        assert!(length > 0 && length % 4096 == 0 && address.0 % 4096 == 0);
        assert!(address.0.checked_add(length).is_some_and(|end| end <= RAM_BYTES));
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let balloon = Balloon::new(Arc::new(Checker));
    let handle = balloon.handle();
    Rig::new(Box::new(balloon)).run(&mut Input(data), |input, memory, queue| {
        handle.set_target_mib(input.u32());
        let numbers: Vec<u8> = (0..input.u8())
            .flat_map(|_| (u32::from(input.u16()) % 300).to_le_bytes())
            .collect();
        memory
            .write_slice(&numbers, GuestAddress(NUMBERS))
            .expect("the numbers are in RAM");
        let length = numbers.len() as u32;
        queue.add(&[Buffer { address: NUMBERS, length, flags: 0 }]);
        handle.actual_mib();
    });
});
