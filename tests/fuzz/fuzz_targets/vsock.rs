//! The socket device under a hostile driver and careless host programs; the script is played by `vsock::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| vmbox_devices::vsock::fuzz::run(data));
