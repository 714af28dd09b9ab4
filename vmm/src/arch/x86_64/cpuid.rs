//! What CPUID tells each vCPU: KVM's offer with the topology of one socket of single-threaded cores. Pure.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
const HTT: u32 = 1 << 28;

/// The CPUID of vCPU `id` of `count`.
pub fn for_vcpu(
    supported: &[kvm_cpuid_entry2],
    id: u8,
    count: u8,
    tsc_deadline: bool,
) -> Vec<kvm_cpuid_entry2> {
    let (id, count) = (u32::from(id), u32::from(count));
    let id_bits = count.next_power_of_two().trailing_zeros();
    let mut entries: Vec<_> = supported
        .iter()
        // The host's own topology: replaced below, or left out so that the guest falls back to what is below.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026))
        .map(|entry| adapt(*entry, id, count, id_bits, tsc_deadline))
        .collect();
    if max_leaf(supported) >= 0xb {
        entries.extend(extended_topology(id, count, id_bits));
    }
    entries
}

/// Physical address bits (CPUID 0x8000_0008 EAX) of what KVM offers.
pub fn phys_bits(supported: &[kvm_cpuid_entry2]) -> u8 {
    supported
        .iter()
        .find(|entry| entry.function == 0x8000_0008)
        .map_or(36, |entry| (entry.eax & 0xff) as u8)
}

fn max_leaf(supported: &[kvm_cpuid_entry2]) -> u32 {
    supported
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax)
}

fn adapt(
    mut entry: kvm_cpuid_entry2,
    id: u32,
    count: u32,
    id_bits: u32,
    tsc_deadline: bool,
) -> kvm_cpuid_entry2 {
    match entry.function {
        0x1 => {
            entry.ecx |= HYPERVISOR;
            if tsc_deadline {
                entry.ecx |= TSC_DEADLINE;
            }
            entry.ebx = (entry.ebx & 0xffff) | (1 << id_bits) << 16 | id << 24;
            entry.edx = if count > 1 {
                entry.edx | HTT
            } else {
                entry.edx & !HTT
            };
        }
        // Caches up to level 2 belong to a core, level 3 to all.
        0x4 if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff)
                | shared_by(entry.eax, count) << 14
                | ((1 << id_bits) - 1) << 26;
        }
        0x8000_001d if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | shared_by(entry.eax, count) << 14;
        }
        // Energy/performance bias: its MSR is the host's business.
        0x6 => entry.ecx &= !(1 << 3),
        // No performance counters: they cost every vCPU switch, and leak the host's load.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 if count == 1 => entry.ecx &= !(1 << 1), // CmpLegacy
        0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (count - 1) | id_bits << 12,
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
        _ => {}
    }
    entry
}

/// "Number of logical processors sharing this cache", minus one.
fn shared_by(eax: u32, count: u32) -> u32 {
    let level = eax >> 5 & 0x7;
    if level >= 3 { count - 1 } else { 0 }
}

/// Leaf 0xb: threads, cores, end of list.
fn extended_topology(id: u32, count: u32, id_bits: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index, shift, logical, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [
        level(0, 0, 1, 1),
        level(1, id_bits, count, 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            eax,
            ..Default::default()
        }
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id_everywhere() {
        let supported = [leaf(0, 0xd), leaf(1, 0), leaf(0xb, 7), leaf(0x8000_001e, 0)];
        let entries = for_vcpu(&supported, 5, 6, true);
        let find = |function, index| {
            *entries
                .iter()
                .find(|e| e.function == function && e.index == index)
                .unwrap()
        };
        assert_eq!(find(1, 0).ebx >> 24, 5);
        assert_eq!(find(1, 0).ebx >> 16 & 0xff, 8);
        assert_eq!(
            find(1, 0).ecx & (HYPERVISOR | TSC_DEADLINE),
            HYPERVISOR | TSC_DEADLINE
        );
        assert_eq!(find(0xb, 1).eax, 3);
        assert_eq!(find(0xb, 1).ebx, 6);
        assert_eq!(find(0xb, 0).edx, 5);
        assert_eq!(find(0x8000_001e, 0).eax, 5);
    }

    #[test]
    fn a_single_vcpu_is_not_told_of_siblings() {
        let entries = for_vcpu(&[leaf(0, 0xd), leaf(1, 0)], 0, 1, false);
        assert_eq!(entries[1].edx & HTT, 0);
        assert_eq!(entries[1].ecx & TSC_DEADLINE, 0);
    }
}
