//! The entropy device under any ring content.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmbox_devices::rng::Rng;
use vmbox_fuzz::{Input, Rig};

fuzz_target!(|data: &[u8]| {
    let rng = Rng::new().expect("/dev/random opens");
    Rig::new(Box::new(rng)).run(&mut Input(data), |_, _, _| {});
});
