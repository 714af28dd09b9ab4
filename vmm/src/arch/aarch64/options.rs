//! What the kernel command line has to say about the platform; its devices are in the device tree.

use crate::machine::board::Place;

/// COMMAND_LINE_SIZE of Linux on aarch64, with the terminating zero.
pub const COMMAND_LINE_SIZE: usize = 2048;

/// The options.
pub fn kernel_options(serial: bool, _devices: &[Place]) -> String {
    // As on x86_64, where each is explained; trust_bootloader: the seed in the device tree counts as entropy.
    if serial {
        "random.trust_bootloader=on swiotlb=noforce rcupdate.rcu_expedited=1 console=ttyS0"
    } else {
        "random.trust_bootloader=on swiotlb=noforce rcupdate.rcu_expedited=1 quiet console=ttynull 8250.nr_uarts=0"
    }
    .into()
}
