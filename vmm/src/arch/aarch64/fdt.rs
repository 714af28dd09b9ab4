//! The device tree (Devicetree Specification 0.4; bindings in Linux' Documentation/devicetree/bindings): all that the
//! kernel knows of its machine. Pure.

use vm_fdt::{Error, FdtWriter};

use super::layout::{
    DISTRIBUTOR, LEGACY_BYTES, REDISTRIBUTOR_BYTES, REDISTRIBUTORS, RTC, SERIAL, SERIAL_IRQ,
};
use crate::machine::board::Place;
use crate::memory::layout::Region;
use vmbox_devices::transport::MMIO_REGION_SIZE;

/// What is to be told.
pub struct Tree<'a> {
    /// MPIDR_EL1 of each processor.
    pub mpidrs: &'a [u64],
    /// All RAM.
    pub ram: Region,
    /// The part of it that is not the kernel's to use.
    pub log: Region,
    /// The guest image.
    pub initrd: Option<Region>,
    /// The kernel command line.
    pub command_line: &'a str,
    /// The virtio devices.
    pub devices: &'a [Place],
    /// Whether there is a serial console.
    pub serial: bool,
    /// Random bytes for the kernel's generator, which it wipes.
    pub rng_seed: [u8; 64],
    /// A random number, by which a kernel with RANDOMIZE_BASE places itself. Ours has none, as on x86_64: what runs in it
    /// is one pod.
    pub kaslr_seed: u64,
}

const GIC: u32 = 1;
const CLOCK: u32 = 2;

/// Interrupt specifiers (bindings/interrupt-controller/arm,gic-v3.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
const EDGE_RISING: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// Secure, non-secure, virtual and hypervisor timer (bindings/timer/arm,arch_timer.yaml), as KVM raises them.
const TIMER_PPIS: [u32; 4] = [13, 14, 11, 10];
/// The bits of MPIDR_EL1 that say which processor this is (bindings/arm/cpus.yaml).
const AFFINITY: u64 = 0xff_00ff_ffff;
/// PL031, as its identification registers would say; told so that the kernel need not ask, an exit a byte.
const PL031_ID: u32 = 0x0004_1031;

/// The tree as a blob.
///
/// # Errors
/// A string with a zero byte in it.
pub fn build(tree: &Tree<'_>) -> Result<Vec<u8>, Error> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_string("compatible", "linux,dummy-virt")?;
    fdt.property_string("model", "vmbox")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_u32("interrupt-parent", GIC)?;
    chosen(&mut fdt, tree)?;
    memory(&mut fdt, tree)?;
    processors(&mut fdt, tree.mpidrs)?;
    platform(&mut fdt, tree.mpidrs.len() as u64)?;
    if tree.serial {
        serial(&mut fdt)?;
    }
    for place in tree.devices {
        virtio(&mut fdt, *place)?;
    }
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, tree: &Tree<'_>) -> Result<(), Error> {
    let node = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", tree.command_line)?;
    fdt.property("rng-seed", &tree.rng_seed)?;
    fdt.property_u64("kaslr-seed", tree.kaslr_seed)?;
    if let Some(initrd) = tree.initrd {
        fdt.property_u64("linux,initrd-start", initrd.base)?;
        fdt.property_u64("linux,initrd-end", initrd.end())?;
    }
    if tree.serial {
        fdt.property_string("stdout-path", &format!("/serial@{SERIAL:x}"))?;
    }
    fdt.end_node(node)
}

/// The log keeps its place in RAM and, having no `no-map`, its caching, so that the host sees what the guest writes.
fn memory(fdt: &mut FdtWriter, tree: &Tree<'_>) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("memory@{:x}", tree.ram.base))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[tree.ram.base, tree.ram.length])?;
    fdt.end_node(node)?;
    let reserved = fdt.begin_node("reserved-memory")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_null("ranges")?;
    let node = fdt.begin_node(&format!("log@{:x}", tree.log.base))?;
    fdt.property_array_u64("reg", &[tree.log.base, tree.log.length])?;
    fdt.end_node(node)?;
    fdt.end_node(reserved)
}

fn processors(fdt: &mut FdtWriter, mpidrs: &[u64]) -> Result<(), Error> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 0)?;
    for mpidr in mpidrs {
        let reg = mpidr & AFFINITY;
        let node = fdt.begin_node(&format!("cpu@{reg:x}"))?;
        fdt.property_string("device_type", "cpu")?;
        fdt.property_string("compatible", "arm,armv8")?;
        fdt.property_string("enable-method", "psci")?;
        fdt.property_u64("reg", reg)?;
        fdt.end_node(node)?;
    }
    fdt.end_node(cpus)
}

fn platform(fdt: &mut FdtWriter, vcpus: u64) -> Result<(), Error> {
    let node = fdt.begin_node("psci")?;
    fdt.property_string_list(
        "compatible",
        vec!["arm,psci-1.0".into(), "arm,psci-0.2".into()],
    )?;
    fdt.property_string("method", "hvc")?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("timer")?;
    fdt.property_string("compatible", "arm,armv8-timer")?;
    let interrupts = TIMER_PPIS.map(|ppi| [PPI, ppi, LEVEL_HIGH]);
    fdt.property_array_u32("interrupts", interrupts.as_flattened())?;
    fdt.property_null("always-on")?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("intc@{:x}", DISTRIBUTOR.base))?;
    fdt.property_string("compatible", "arm,gic-v3")?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 3)?;
    fdt.property_array_u64(
        "reg",
        &[
            DISTRIBUTOR.base,
            DISTRIBUTOR.length,
            REDISTRIBUTORS,
            vcpus * REDISTRIBUTOR_BYTES,
        ],
    )?;
    fdt.property_phandle(GIC)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node("apb-pclk")?;
    fdt.property_string("compatible", "fixed-clock")?;
    fdt.property_u32("#clock-cells", 0)?;
    fdt.property_u32("clock-frequency", 24_000_000)?;
    fdt.property_phandle(CLOCK)?;
    fdt.end_node(node)?;

    let node = fdt.begin_node(&format!("rtc@{RTC:x}"))?;
    fdt.property_string_list(
        "compatible",
        vec!["arm,pl031".into(), "arm,primecell".into()],
    )?;
    fdt.property_u32("arm,primecell-periphid", PL031_ID)?;
    fdt.property_array_u64("reg", &[RTC, LEGACY_BYTES])?;
    fdt.property_u32("clocks", CLOCK)?;
    fdt.property_string("clock-names", "apb_pclk")?;
    fdt.end_node(node)
}

fn serial(fdt: &mut FdtWriter) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("serial@{SERIAL:x}"))?;
    fdt.property_string("compatible", "ns16550a")?;
    fdt.property_array_u64("reg", &[SERIAL, LEGACY_BYTES])?;
    fdt.property_u32("clock-frequency", 1_843_200)?;
    fdt.property_array_u32("interrupts", &[SPI, SERIAL_IRQ, EDGE_RISING])?;
    fdt.end_node(node)
}

/// bindings/virtio/mmio.yaml. Irqfds make edges.
fn virtio(fdt: &mut FdtWriter, place: Place) -> Result<(), Error> {
    let node = fdt.begin_node(&format!("virtio_mmio@{:x}", place.base))?;
    fdt.property_string("compatible", "virtio,mmio")?;
    fdt.property_array_u64("reg", &[place.base, MMIO_REGION_SIZE])?;
    fdt.property_array_u32("interrupts", &[SPI, place.irq, EDGE_RISING])?;
    fdt.property_null("dma-coherent")?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::super::layout::{FDT_BYTES, MAX_DEVICES, device_place, ram_map};
    use super::*;

    fn blob<'a>(change: impl FnOnce(&mut Tree<'a>)) -> Vec<u8> {
        let map = ram_map(64);
        let mut tree = Tree {
            mpidrs: &[0x8000_0000, 0x8000_0001],
            ram: map.regions[0],
            log: map.ramoops,
            initrd: None,
            command_line: "quiet",
            devices: &[],
            serial: false,
            rng_seed: [7; 64],
            kaslr_seed: 9,
        };
        change(&mut tree);
        build(&tree).unwrap()
    }

    #[test]
    fn processors_and_memory_are_described() {
        let blob = blob(|_| {});
        let fdt = fdt::Fdt::new(&blob).unwrap();
        let ids: Vec<_> = fdt.cpus().map(|cpu| cpu.ids().first()).collect();
        assert_eq!(ids, [0, 1]);
        let cpu = fdt.cpus().nth(1).unwrap();
        assert_eq!(
            cpu.property("enable-method").unwrap().as_str(),
            Some("psci")
        );
        let memory = fdt.memory().regions().next().unwrap();
        assert_eq!(memory.starting_address as u64, 1 << 30);
        assert_eq!(memory.size, Some(64 << 20));
        assert_eq!(fdt.chosen().bootargs(), Some("quiet"));
        let log = fdt.find_node("/reserved-memory/log@43fc0000").unwrap();
        assert_eq!(log.reg().unwrap().next().unwrap().size, Some(256 << 10));
        assert!(log.property("no-map").is_none());
    }

    #[test]
    fn the_serial_console_is_there_only_if_asked_for() {
        let path = "/serial@9000000";
        let without = blob(|_| {});
        assert!(fdt::Fdt::new(&without).unwrap().find_node(path).is_none());
        let with = blob(|tree| tree.serial = true);
        let fdt = fdt::Fdt::new(&with).unwrap();
        assert!(fdt.find_node(path).is_some());
        assert_eq!(fdt.chosen().stdout().unwrap().name, "serial@9000000");
    }

    #[test]
    fn devices_have_their_registers_and_interrupts() {
        let place = device_place(2).unwrap();
        let blob = blob(|tree| tree.devices = std::slice::from_ref(&place));
        let fdt = fdt::Fdt::new(&blob).unwrap();
        let node = fdt.find_node("/virtio_mmio@a002000").unwrap();
        let register = node.reg().unwrap().next().unwrap();
        assert_eq!(register.starting_address as u64, place.base);
        let interrupts = node.property("interrupts").unwrap().value;
        assert_eq!(interrupts, [0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 1]);
    }

    fn cells(blob: &[u8], node: &str, property: &str) -> Vec<u32> {
        let fdt = fdt::Fdt::new(blob).unwrap();
        let node = fdt.find_node(node).unwrap();
        let value = node.property(property).unwrap().value;
        let words = value.as_chunks::<4>().0.iter();
        words.map(|word| u32::from_be_bytes(*word)).collect()
    }

    fn is_compatible(blob: &[u8], node: &str, with: &str) -> bool {
        let fdt = fdt::Fdt::new(blob).unwrap();
        let node = fdt.find_node(node).unwrap();
        node.compatible().unwrap().all().any(|name| name == with)
    }

    #[test]
    fn the_interrupt_controller_is_a_gicv3_with_a_redistributor_for_each_processor() {
        let blob = blob(|tree| tree.mpidrs = &[0, 1, 2]);
        let node = "/intc@8000000";
        assert!(is_compatible(&blob, node, "arm,gic-v3"));
        let distributor = [0, 0x0800_0000, 0, 0x1_0000];
        let redistributors = [0, 0x080a_0000, 0, 3 * 0x2_0000];
        assert_eq!(
            cells(&blob, node, "reg"),
            [distributor, redistributors].concat()
        );
        assert_eq!(
            cells(&blob, "/", "interrupt-parent"),
            cells(&blob, node, "phandle")
        );
    }

    #[test]
    fn the_timer_has_the_interrupts_that_kvm_raises() {
        let blob = blob(|_| {});
        assert!(is_compatible(&blob, "/timer", "arm,armv8-timer"));
        let interrupts = cells(&blob, "/timer", "interrupts");
        // KVM's virtual timer, its physical one: PPIs 11 and 14, levels (KVM_ARM_VCPU_TIMER_IRQ_VTIMER is INTID 27).
        assert_eq!(interrupts[6..9], [PPI, 11, LEVEL_HIGH]);
        assert_eq!(interrupts[3..6], [PPI, 14, LEVEL_HIGH]);
    }

    #[test]
    fn processors_are_switched_by_hypercalls() {
        let blob = blob(|_| {});
        assert!(is_compatible(&blob, "/psci", "arm,psci-0.2"));
        let fdt = fdt::Fdt::new(&blob).unwrap();
        let method = fdt.find_node("/psci").unwrap().property("method").unwrap();
        assert_eq!(method.as_str(), Some("hvc"));
    }

    #[test]
    fn the_clock_is_a_pl031_whose_own_clock_is_there() {
        let blob = blob(|_| {});
        let node = "/rtc@9010000";
        assert!(is_compatible(&blob, node, "arm,pl031"));
        assert_eq!(cells(&blob, node, "reg"), [0, 0x0901_0000, 0, 0x1000]);
        assert_eq!(
            cells(&blob, node, "clocks"),
            cells(&blob, "/apb-pclk", "phandle")
        );
    }

    #[test]
    fn the_largest_tree_fits() {
        let mpidrs: Vec<u64> = (0..32).collect();
        let devices: Vec<_> = (0..MAX_DEVICES).filter_map(device_place).collect();
        let line = "x".repeat(2047);
        let blob = blob(|tree| {
            tree.mpidrs = &mpidrs;
            tree.devices = &devices;
            tree.command_line = &line;
            tree.serial = true;
        });
        assert!(blob.len() as u64 <= FDT_BYTES, "{}", blob.len());
    }
}
