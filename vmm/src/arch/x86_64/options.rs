//! What the kernel command line has to say about the platform and its devices.

use vmbox_devices::transport::MMIO_REGION_SIZE;

use crate::machine::board::Place;

/// The options; without device tree or ACPI they are also how the kernel finds its virtio devices
/// (`virtio_mmio.device=SIZE@BASE:IRQ`), in order.
pub fn kernel_options(serial: bool, devices: &[Place]) -> String {
    // reboot=k: the only way to reset here is the keyboard controller. rcu_expedited: waits of tens of milliseconds at boot
    // become microseconds. ttynull: PID 1 gets a console that discards. swiotlb=noforce: saves 64 MiB above 4 GiB of RAM, no device here has an address limit.
    let mut options = if serial {
        "reboot=k tsc=reliable swiotlb=noforce rcupdate.rcu_expedited=1 console=ttyS0"
    } else {
        "reboot=k tsc=reliable swiotlb=noforce rcupdate.rcu_expedited=1 quiet console=ttynull 8250.nr_uarts=0"
    }
    .to_owned();
    let size = MMIO_REGION_SIZE >> 10;
    for Place { base, irq } in devices {
        options.push_str(&format!(" virtio_mmio.device={size}K@{base:#x}:{irq}"));
    }
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_order() {
        let places = [0xd000_0000, 0xd000_1000].map(|base| Place { base, irq: 5 });
        let options = kernel_options(true, &places);
        assert!(
            options.ends_with(
                " virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:5"
            ),
            "{options}"
        );
    }
}
