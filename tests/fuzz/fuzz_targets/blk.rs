//! The block device under any ring content and any request; the file must keep its size.
#![no_main]

use std::fs::File;

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::blk::Blk;
use vmbox_devices::testing::{Buffer, WRITE};
use vmbox_fuzz::{Input, Rig};

const DISK_BYTES: u64 = 64 * 512;
const HEADER: u64 = 0x9_0000;
const STATUS: u64 = 0x9_1000;

thread_local! {
    /// One file for all runs, so that a run is not mostly file creation.
    static DISK: File = tempfile::tempfile_in("/dev/shm").expect("/dev/shm can be written");
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let read_only = input.u8() & 1 == 1;
    let disk = DISK.with(|disk| disk.try_clone()).expect("a descriptor is free");
    disk.set_len(DISK_BYTES).expect("the file can be resized");
    let size = disk.try_clone().expect("a descriptor is free");
    let blk = Blk::new(disk, read_only, "fuzz").expect("a file has a size");
    Rig::new(Box::new(blk)).run(&mut input, |input, memory, queue| {
        let kinds = [0u32, 1, 4, 8, 11, 13, 2];
        let kind = kinds[usize::from(input.u8()) % kinds.len()];
        let sector = u64::from(input.u8() % 70);
        let header = [kind.to_le_bytes(), [0; 4]].concat();
        let header = [header, sector.to_le_bytes().to_vec()].concat();
        memory
            .write_slice(&header, GuestAddress(HEADER))
            .expect("the header is in RAM");
        let header = Buffer { address: HEADER, length: 16, flags: 0 };
        let status = Buffer { address: STATUS, length: 1, flags: WRITE };
        let mut chain = vec![header];
        for _ in 0..input.u8() % 4 {
            let mut data = input.buffer();
            data.flags &= WRITE;
            if input.u8() & 1 == 1 {
                data.length = data.length / 512 * 512;
            }
            chain.push(data);
        }
        chain.push(status);
        queue.add(&chain);
    });
    assert_eq!(size.metadata().expect("it is open").len(), DISK_BYTES);
});
