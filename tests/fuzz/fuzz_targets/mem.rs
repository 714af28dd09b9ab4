//! The memory device under any ring content: what is given back must always be blocks of its region, and no more is plugged
//! than was ever asked for.
#![no_main]

use std::io;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::balloon::Reclaim;
use vmbox_devices::mem::{BLOCK_BYTES, Mem};
use vmbox_devices::testing::{Buffer, WRITE};
use vmbox_fuzz::{Input, Rig};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const REQUEST: u64 = 0x9_0000;
const RESPONSE: u64 = 0x9_1000;
const BASE: u64 = 1 << 32;
const LENGTH: u64 = 256 << 20;

struct Checker;

impl Reclaim for Checker {
    fn reclaim(&self, address: GuestAddress, length: u64) -> io::Result<()> {
        assert!(length > 0 && length % BLOCK_BYTES == 0 && address.0 % BLOCK_BYTES == 0);
        assert!(address.0 >= BASE && address.0 + length <= BASE + LENGTH);
        Ok(())
    }
}

fuzz_target!(|data: &[u8]| {
    let changed = EventFd::new(EFD_NONBLOCK).expect("there is a descriptor");
    let mem = Mem::new(BASE, LENGTH, Arc::new(Checker), changed);
    let handle = mem.handle();
    let mut most = 0;
    Rig::new(Box::new(mem)).run(&mut Input(data), |input, memory, queue| {
        if input.u8() % 4 == 0 {
            let wanted = u64::from(input.u16()) << 12;
            handle.request(wanted);
            most = most.max(wanted.next_multiple_of(BLOCK_BYTES));
        }
        let mut request = vec![0; 24];
        request[0] = input.u8() % 5;
        let block = u64::from(input.u8());
        request[8..16].copy_from_slice(&(BASE + block * BLOCK_BYTES).to_le_bytes());
        request[16] = input.u8();
        memory
            .write_slice(&request, GuestAddress(REQUEST))
            .expect("the request is in RAM");
        queue.add(&[
            Buffer { address: REQUEST, length: 24, flags: 0 },
            Buffer { address: RESPONSE, length: 10, flags: WRITE },
        ]);
        assert!(handle.plugged_bytes() <= most.min(LENGTH));
    });
});
