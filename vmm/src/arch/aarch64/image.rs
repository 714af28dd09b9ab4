//! The header of an Image (Documentation/arch/arm64/booting.rst §4), all little endian:
//!
//! ```text
//! 0 code  8 text_offset  16 image_size  24 flags  56 "ARM\x64"  60 PE header's offset
//! ```
//!
//! `image_size` counts zeroed data, which no file has, so it does not tell how long the file is. The sections of the PE
//! header do, in Images that are EFI programs too, as those of distributions are; ours has none, and a part of it boots
//! as far as it goes.

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
    if file_length < sections_end(start) {
        return Err("is truncated".into());
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

/// Where the last section in the file ends (PE Format, "Section Table"), as far as `start` tells.
fn sections_end(start: &[u8]) -> u64 {
    let half = |at: usize| {
        let bytes = start.get(at..)?.first_chunk()?;
        Some(usize::from(u16::from_le_bytes(*bytes)))
    };
    let word = |at: usize| Some(u32::from_le_bytes(*start.get(at..)?.first_chunk()?));
    let table = || {
        let header = usize::try_from(word(60)?).ok()?;
        let magic = start.get(header..)?.starts_with(b"PE\0\0");
        let optional_header = header + 24;
        magic.then_some((optional_header + half(header + 20)?, half(header + 6)?))
    };
    let (first, count) = table().unwrap_or_default();
    let end = |index: usize| {
        let section = first + index * 40;
        Some(u64::from(word(section + 16)?) + u64::from(word(section + 20)?))
    };
    (0..count).map_while(end).max().unwrap_or(0)
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

    /// The header of Debian's 6.12 Image: two sections, the last ending after 0x8000 bytes.
    fn efi_header() -> Vec<u8> {
        let mut header = header();
        header[60] = 64;
        header.resize(512, 0);
        header[64..68].copy_from_slice(b"PE\0\0");
        header[70] = 2;
        header[84] = 160;
        for (section, [length, from]) in [(248, [0x4000u32, 0x1000]), (288, [0x3000, 0x5000])] {
            header[section + 16..section + 20].copy_from_slice(&length.to_le_bytes());
            header[section + 20..section + 24].copy_from_slice(&from.to_le_bytes());
        }
        header
    }

    #[test]
    fn a_file_that_ends_before_its_last_section_is_refused() {
        assert!(parse(&efi_header(), 0x8000).is_ok());
        assert!(parse(&efi_header(), 0x8100).is_ok(), "a signature follows");
        assert_eq!(parse(&efi_header(), 0x7fff).unwrap_err(), "is truncated");
    }

    #[test]
    fn a_pe_header_that_lies_outside_of_the_file_is_none() {
        for (at, byte) in [
            (63, 0xff),
            (62, 1),
            (60, 0),
            (84, 0xff),
            (85, 0xff),
            (71, 0xff),
        ] {
            let mut header = efi_header();
            header[at] = byte;
            let _ = parse(&header, 0x8000);
            for length in [64, 66, 70, 90, 250, 300] {
                let _ = parse(&header[..length], 0x8000);
            }
        }
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
