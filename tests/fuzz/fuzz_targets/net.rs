//! The network device under any ring content, with frames of every length from the wire and wires that come and go.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vm_memory::{Bytes, GuestAddress};
use vmbox_devices::net::{FRAME_BYTES_MAX, Net};
use vmbox_devices::testing::{Buffer, FakePort, WRITE};
use vmbox_fuzz::{Input, Rig};

/// Where chains of frames' sizes are; each queue gets what it is for.
const FRAME: u64 = 0x9_0000;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let device = Net::new([2, 0, 0, 0, 0, 1], None).expect("a descriptor is free");
    let nic = device.handle();
    let attach = || {
        let (port, wire) = FakePort::pair().expect("descriptors are free");
        // Occupied: the one that is there goes on.
        nic.attach(port).ok().map(|()| wire)
    };
    let mut wire = attach();
    Rig::new(Box::new(device)).run(&mut input, |input, memory, queue| match input.u8() % 8 {
        0 => {
            nic.detach();
            wire = attach();
        }
        1 | 2 => {
            let length = usize::from(input.u16()) + usize::from(input.u8()) * 8;
            if let Some(wire) = &wire {
                // The queue is full, or nobody is there.
                let _ = wire.send(&vec![0x55; length.min(FRAME_BYTES_MAX + 100)]);
            }
        }
        3 => {
            memory
                .write_slice(&input.bytes(), GuestAddress(FRAME))
                .expect("the frame is in RAM");
            let frame = Buffer { address: FRAME, length: u32::from(input.u16()) % 2000, flags: 0 };
            queue.add(&[frame]);
        }
        _ => {
            let length = u32::from(input.u16()) % 5000;
            queue.add(&[Buffer { address: FRAME, length, flags: WRITE }]);
        }
    });
    if let Some(wire) = &wire {
        let mut frame = vec![0; FRAME_BYTES_MAX + 1];
        while let Ok(length) = wire.recv(&mut frame) {
            assert!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes left the guest");
        }
    }
});
