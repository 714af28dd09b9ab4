//! What differs between the emulated machines of the two architectures.

use super::{Flavour, Model};
use crate::arch::Arch;

/// QEMU's program, and the Debian package that it comes in.
pub fn program(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::X86_64 => ("qemu-system-x86_64", "qemu-system-x86"),
        Arch::Aarch64 => ("qemu-system-aarch64", "qemu-system-arm"),
    }
}

/// QEMU's options for board, processor and time.
pub fn options(model: Model) -> Vec<String> {
    let machine = match model.arch {
        Arch::X86_64 => "q35",
        // EL2 for KVM. GICv3, because KVM emulates a guest's only on one.
        Arch::Aarch64 => "virt,virtualization=on,gic-version=3",
    };
    let timing = match model.flavour {
        Flavour::Fast => String::new(),
        Flavour::Counting { shift } => format!("shift={shift},sleep=off"),
    };
    let (cpu, cpus) = processor(model);
    let mut options = vec!["-M", machine, "-accel", "tcg", "-cpu", cpu, "-smp", cpus];
    if !timing.is_empty() {
        options.extend(["-icount", &timing]);
    }
    options.into_iter().map(str::to_owned).collect()
}

/// QEMU's name of the processor, and how many there are.
fn processor(model: Model) -> (&'static str, &'static str) {
    match (model.arch, model.flavour) {
        // One CPU: with two, TCG lets one run stale code while the other patches it, and kernels (the host's and its
        // guests') die of invalid opcodes or triple faults. No XSAVE: TCG's SVM does not intercept xsetbv, so a guest
        // would change its host's XCR0.
        (Arch::X86_64, Flavour::Fast) => ("max,+svm,-xsave", "1"),
        // No ERMS: with it every byte of a `rep movsb` counts as an instruction.
        (Arch::X86_64, Flavour::Counting { .. }) => ("EPYC-v1,+svm,-xsave", "1"),
        // Not `max`, which is three times slower. This one has 48 bits of physical addresses, so large guests fit.
        (Arch::Aarch64, Flavour::Fast) => ("neoverse-n1", "2"),
        (Arch::Aarch64, Flavour::Counting { .. }) => ("neoverse-n1", "1"),
    }
}

/// The kernel's command line: where its console is, and how it keeps time.
pub fn command_line(model: Model) -> String {
    let console = match model.arch {
        Arch::X86_64 => "ttyS0",
        Arch::Aarch64 => "ttyAMA0",
    };
    let timing = match (model.arch, model.flavour) {
        (Arch::X86_64, Flavour::Counting { .. }) => " tsc=reliable clocksource=tsc",
        _ => "",
    };
    // The mitigations only slow the emulation down; eth0 is what the daemon expects.
    format!("console={console} panic=-1 quiet mitigations=off net.ifnames=0{timing}")
}
