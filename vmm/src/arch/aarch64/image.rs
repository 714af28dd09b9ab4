//! The header of an Image (Documentation/arch/arm64/booting.rst §4), all little endian:
//!
//! ```text
//! 0 code  8 text_offset  16 image_size  24 flags  56 "ARM\x64"
//! ```

/// Bytes from the start of RAM to the Image, and what it says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Where it goes, counted from a 2 MiB boundary.
    pub text_offset: u64,
    /// Memory that it needs from there, its zeroed data included.
    pub image_size: u64,
    /// The page size it is built for, if it says so.
    pub granule: Option<Granule>,
}

/// A page size; processors need not have all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granule {
    /// 4 KiB.
    Kib4,
    /// 16 KiB.
    Kib16,
    /// 64 KiB.
    Kib64,
}

const BIG_ENDIAN: u64 = 1;
const ALIGNMENT: u64 = 2 << 20;

/// Reads the header of a file that begins with `start` and has `file_length` bytes.
///
/// # Errors
/// What is wrong with it, for "kernel PATH …".
pub fn parse(start: &[u8], file_length: u64) -> Result<Image, String> {
    let field = |at: usize| {
        start
            .get(at..at + 8)
            .and_then(|bytes| bytes.first_chunk().copied())
            .map(u64::from_le_bytes)
            .ok_or_else(|| "is truncated".to_owned())
    };
    let (text_offset, image_size, flags) = (field(8)?, field(16)?, field(24)?);
    if image_size == 0 {
        return Err("does not say how large it is, so it is older than Linux 3.17".into());
    }
    if flags & BIG_ENDIAN != 0 {
        return Err("is big-endian".into());
    }
    if file_length > image_size {
        return Err(format!(
            "is damaged: it has {file_length} bytes and says {image_size}"
        ));
    }
    if text_offset >= ALIGNMENT {
        return Err(format!("is damaged: its text_offset is {text_offset:#x}"));
    }
    let granule = match flags >> 1 & 3 {
        1 => Some(Granule::Kib4),
        2 => Some(Granule::Kib16),
        3 => Some(Granule::Kib64),
        _ => None,
    };
    Ok(Image {
        text_offset,
        image_size,
        granule,
    })
}

impl Granule {
    /// Whether a processor with this ID_AA64MMFR0_EL1 (Arm ARM D24.2.90) has it. A kernel that does not find its own
    /// stops without a word.
    pub fn is_offered(self, mmfr0: u64) -> bool {
        let field = |shift: u32| mmfr0 >> shift & 0xf;
        match self {
            Self::Kib4 => field(28) < 8,
            Self::Kib16 => field(20) != 0,
            Self::Kib64 => field(24) < 8,
        }
    }

    /// In KiB.
    pub fn kib(self) -> u32 {
        match self {
            Self::Kib4 => 4,
            Self::Kib16 => 16,
            Self::Kib64 => 64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Little endian, 4 KiB pages, anywhere; 64 KiB in memory.
    fn header() -> Vec<u8> {
        let mut header = vec![0; 64];
        header[16..24].copy_from_slice(&0x1_0000u64.to_le_bytes());
        header[24] = 0b1010;
        header[56..60].copy_from_slice(b"ARM\x64");
        header
    }

    #[test]
    fn a_usual_header_is_read() {
        let image = parse(&header(), 0x8000).unwrap();
        assert_eq!(
            image,
            Image {
                text_offset: 0,
                image_size: 0x1_0000,
                granule: Some(Granule::Kib4)
            }
        );
    }

    #[test]
    fn what_can_not_boot_is_refused_with_its_reason() {
        let refusal = |at: usize, byte: u8| {
            let mut header = header();
            header[at] = byte;
            parse(&header, 0x8000).unwrap_err()
        };
        assert_eq!(refusal(24, 0b1011), "is big-endian");
        assert!(refusal(18, 0).contains("older than Linux 3.17"));
        assert!(refusal(15, 0xff).contains("text_offset"));
        assert!(parse(&header(), 0x1_0001).unwrap_err().contains("damaged"));
        assert_eq!(parse(&header()[..20], 20).unwrap_err(), "is truncated");
    }

    #[test]
    fn granules_are_read_from_the_feature_register() {
        // A Cortex-A76: 4 and 64 KiB yes, 16 KiB too.
        let a76 = 0x10_1122;
        assert!(Granule::Kib4.is_offered(a76));
        assert!(Granule::Kib16.is_offered(a76));
        assert!(Granule::Kib64.is_offered(a76));
        // Neoverse-like without 16 KiB; one with 16 KiB only.
        assert!(!Granule::Kib16.is_offered(0x1122));
        assert!(!Granule::Kib4.is_offered(0xff10_0000));
        assert!(!Granule::Kib64.is_offered(0xff10_0000));
    }
}
