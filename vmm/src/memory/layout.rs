//! Regions of guest-physical addresses and where the DAX windows go: pure arithmetic.

/// A run of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
}

impl Region {
    /// First address after it.
    pub const fn end(&self) -> u64 {
        self.base + self.length
    }
}

/// Where RAM lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamMap {
    /// One region, or two with a gap for devices between them.
    pub regions: Vec<Region>,
    /// The part of the first region that the kernel keeps its log in and nothing else.
    pub ramoops: Region,
    /// First address after all RAM and all gaps.
    pub end: u64,
}

/// One GiB, the alignment of DAX windows: the guest maps them with its largest pages.
pub const GIB: u64 = 1 << 30;
/// One MiB.
pub const MIB: u64 = 1 << 20;

/// The guest can't address all that the configuration asks for.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooHigh {
    /// Not even the RAM.
    #[error(
        "memory_mib is too large for this machine: the RAM would end at {end:#x}, its processor and KVM let guests address {phys_bits} bits; ask for less"
    )]
    Ram {
        /// First address behind it.
        end: u64,
        /// What can be addressed.
        phys_bits: u8,
    },
    /// The DAX windows behind it.
    #[error(
        "DAX windows of {windows_mib} MiB do not fit behind the guest's RAM: its CPUs address {phys_bits} bits; ask for smaller windows"
    )]
    Windows {
        /// All windows.
        windows_mib: u64,
        /// What can be addressed.
        phys_bits: u8,
    },
}

/// Places a window of each length (in bytes) behind `ram_end`, each 1 GiB-aligned, within `phys_bits` address bits.
///
/// # Errors
/// They, or the RAM itself, reach past the last address that the guest can form.
pub fn place_windows(ram_end: u64, lengths: &[u64], phys_bits: u8) -> Result<Vec<Region>, TooHigh> {
    let too_large = || TooHigh::Windows {
        windows_mib: lengths.iter().sum::<u64>() / MIB,
        phys_bits,
    };
    let limit = 1u64.checked_shl(u32::from(phys_bits)).unwrap_or(u64::MAX);
    if ram_end > limit {
        return Err(TooHigh::Ram {
            end: ram_end,
            phys_bits,
        });
    }
    let mut next = ram_end;
    let mut windows = Vec::with_capacity(lengths.len());
    for &length in lengths {
        let base = next.checked_next_multiple_of(GIB).ok_or_else(too_large)?;
        next = base.checked_add(length).ok_or_else(too_large)?;
        if next > limit {
            return Err(too_large());
        }
        windows.push(Region { base, length });
    }
    Ok(windows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_aligned_and_do_not_overlap() {
        let windows = place_windows(5 * GIB + MIB, &[2 * MIB, 3 * GIB, 2 * MIB], 40).unwrap();
        assert_eq!(windows[0].base, 6 * GIB);
        assert_eq!(windows[1].base, 7 * GIB);
        assert_eq!(windows[2].base, 10 * GIB);
    }

    #[test]
    fn windows_past_the_last_address_are_refused() {
        assert!(place_windows(60 * GIB, &[4 * GIB], 36).is_ok());
        assert!(place_windows(60 * GIB, &[4 * GIB + MIB], 36).is_err());
    }

    #[test]
    fn ram_past_the_last_address_is_refused_as_such() {
        assert!(place_windows(64 * GIB, &[], 36).is_ok());
        assert!(matches!(
            place_windows(65 * GIB, &[GIB], 36),
            Err(TooHigh::Ram { phys_bits: 36, .. })
        ));
    }
}
