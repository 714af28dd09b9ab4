//! Recognises kernel files, the wrong ones above all: people have many formats, each architecture boots one.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How many bytes from the start of a file [`recognize`] looks at.
const HEADER_BYTES: usize = 1024;

/// The start of a file, for [`recognize`].
///
/// # Errors
/// It can't be read.
pub fn read_header(file: &File) -> io::Result<Vec<u8>> {
    let mut header = vec![0; HEADER_BYTES];
    // A file system gives all that it has at once.
    let count = file.read_at(&mut header, 0)?;
    header.truncate(count);
    Ok(header)
}

/// What a file that is given as kernel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelFile {
    /// Nothing.
    Empty,
    /// An ELF file: little endian and 64 bits wide or not, for this `e_machine`.
    Elf {
        /// 64-bit and little endian.
        le64: bool,
        /// ELF's `e_machine`.
        machine: u16,
    },
    /// An uncompressed aarch64 Image.
    Aarch64Image,
    /// A compressed x86 kernel with its set-up code.
    BzImage,
    /// A compressed aarch64 kernel that is an EFI program (CONFIG_EFI_ZBOOT).
    Zboot,
    /// Anything in a compressed file; the format's name.
    Compressed(&'static str),
    /// None of these.
    Unknown,
}

/// Judges a file by its first KiB, or all if it has less.
pub fn recognize(header: &[u8]) -> KernelFile {
    let at = |offset: usize, magic: &[u8]| {
        header
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    };
    if header.is_empty() {
        KernelFile::Empty
    } else if at(0, b"\x7fELF") {
        let machine = header.get(18..20).and_then(|bytes| bytes.first_chunk());
        KernelFile::Elf {
            le64: at(4, &[2, 1]),
            machine: u16::from_le_bytes(*machine.unwrap_or(&[0; 2])),
        }
    } else if at(56, b"ARM\x64") {
        KernelFile::Aarch64Image
    } else if at(0x202, b"HdrS") {
        KernelFile::BzImage
    } else if at(0, b"MZ\0\0zimg") {
        KernelFile::Zboot
    } else if at(0, &[0x1f, 0x8b]) {
        KernelFile::Compressed("gzip")
    } else if at(0, &[0x28, 0xb5, 0x2f, 0xfd]) {
        KernelFile::Compressed("zstd")
    } else if at(0, b"\xfd7zXZ\0") {
        KernelFile::Compressed("xz")
    } else {
        KernelFile::Unknown
    }
}

/// The name of an ELF `e_machine`.
pub fn machine_name(machine: u16) -> String {
    match machine {
        3 => "i386".into(),
        40 => "32-bit Arm".into(),
        62 => "x86_64".into(),
        183 => "aarch64".into(),
        243 => "RISC-V".into(),
        other => format!("another machine ({other})"),
    }
}

/// What is wrong with the file, for those who need another.
impl fmt::Display for KernelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "is empty"),
            Self::Elf { machine, .. } => {
                write!(f, "is an ELF file for {}", machine_name(*machine))
            }
            Self::Aarch64Image => write!(f, "is an Image for aarch64"),
            Self::BzImage => write!(f, "is a compressed bzImage for x86_64"),
            Self::Zboot => write!(f, "is a compressed EFI program (CONFIG_EFI_ZBOOT)"),
            Self::Compressed(format) => write!(f, "is compressed ({format})"),
            Self::Unknown => write!(f, "is no kernel of any known format"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[offset..offset + magic.len()].copy_from_slice(magic);
        header
    }

    #[test]
    fn formats_are_told_apart() {
        assert_eq!(recognize(b""), KernelFile::Empty);
        assert_eq!(recognize(b"hello"), KernelFile::Unknown);
        assert_eq!(recognize(&with(56, b"ARM\x64")), KernelFile::Aarch64Image);
        assert_eq!(recognize(&with(0x202, b"HdrS")), KernelFile::BzImage);
        assert_eq!(recognize(&with(0, b"MZ\0\0zimg")), KernelFile::Zboot);
        assert_eq!(
            recognize(&with(0, &[0x1f, 0x8b])),
            KernelFile::Compressed("gzip")
        );
    }

    #[test]
    fn an_image_that_is_an_efi_program_too_is_an_image() {
        let mut header = with(56, b"ARM\x64");
        header[..2].copy_from_slice(b"MZ");
        assert_eq!(recognize(&header), KernelFile::Aarch64Image);
    }

    #[test]
    fn elf_files_name_their_machine() {
        let mut header = with(0, b"\x7fELF\x02\x01\x01");
        header[18] = 183;
        assert_eq!(recognize(&header).to_string(), "is an ELF file for aarch64");
        assert_eq!(
            recognize(&header[..10]),
            KernelFile::Elf {
                le64: true,
                machine: 0
            }
        );
    }
}
