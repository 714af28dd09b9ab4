//! What an ELF vmlinux says of itself: its segments, and where a PVH boot enters it (Xen's elfnote.h,
//! XEN_ELFNOTE_PHYS32_ENTRY).

use std::io::{Read, Seek};

use elf::ElfStream;
use elf::abi::{PT_LOAD, PT_NOTE};
use elf::endian::LittleEndian;
use elf::note::Note;
use elf::segment::ProgramHeader;

const PHYS32_ENTRY: u64 = 18;

/// A kernel's segments and entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Vmlinux {
    /// What is to be loaded.
    pub segments: Vec<Segment>,
    /// The physical address of the PVH entry.
    pub entry: u64,
}

/// What the segments span.
#[derive(Debug, PartialEq, Eq)]
pub struct Extent {
    /// The lowest physical address.
    pub lowest: u64,
    /// The first physical address after all.
    pub memory_end: u64,
    /// How long the file must be.
    pub file_end: u64,
}

impl Vmlinux {
    /// What the segments, of which there is at least one, span.
    pub fn extent(&self) -> Extent {
        let mut extent = Extent {
            lowest: u64::MAX,
            memory_end: 0,
            file_end: 0,
        };
        for segment in &self.segments {
            extent.lowest = extent.lowest.min(segment.address);
            extent.memory_end = extent
                .memory_end
                .max(segment.address + segment.memory_length);
            extent.file_end = extent.file_end.max(segment.offset + segment.length);
        }
        extent
    }
}

/// A part of the file and its place in memory. Neither `offset + length` nor `address + memory_length` overflows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it is in the file.
    pub offset: u64,
    /// Where it goes, a physical address.
    pub address: u64,
    /// How much of it the file has.
    pub length: u64,
    /// How much memory it takes; behind `length` it is zero.
    pub memory_length: u64,
}

/// Reads the headers and notes.
///
/// # Errors
/// What is wrong with the file, for "kernel PATH …".
pub fn parse(file: impl Read + Seek) -> Result<Vmlinux, String> {
    let damaged = |_| "is truncated or damaged".to_owned();
    let mut stream = ElfStream::<LittleEndian, _>::open_stream(file).map_err(damaged)?;
    let headers = stream.segments().clone();
    let segments: Vec<_> = headers
        .iter()
        .filter(|header| header.p_type == PT_LOAD)
        .map(segment)
        .collect::<Option<_>>()
        .filter(|segments: &Vec<_>| !segments.is_empty())
        .ok_or_else(|| "is damaged: its segments make no sense".to_owned())?;
    for header in headers.iter().filter(|header| header.p_type == PT_NOTE) {
        for note in stream.segment_data_as_notes(header).map_err(damaged)? {
            if let Some(entry) = pvh_entry(&note) {
                return Ok(Vmlinux { segments, entry });
            }
        }
    }
    Err("has no PVH entry note".into())
}

fn segment(header: &ProgramHeader) -> Option<Segment> {
    let memory_length = header.p_memsz.max(header.p_filesz);
    header.p_offset.checked_add(header.p_filesz)?;
    header.p_paddr.checked_add(memory_length)?;
    Some(Segment {
        offset: header.p_offset,
        address: header.p_paddr,
        length: header.p_filesz,
        memory_length,
    })
}

fn pvh_entry(note: &Note<'_>) -> Option<u64> {
    match note {
        Note::Unknown(note) if note.n_type == PHYS32_ENTRY && note.name == b"Xen\0" => {
            let address = note.desc.first_chunk::<4>()?;
            Some(u64::from(u32::from_le_bytes(*address)))
        }
        _ => None,
    }
}

/// A kernel for tests: a Xen note with the entry 0x100_0000, and a segment of 16 bytes at 1 MiB.
#[cfg(test)]
pub fn sample() -> Vec<u8> {
    let mut elf = vec![0; 64 + 2 * 56];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    elf[16] = 2; // e_type: executable
    elf[18] = 62; // e_machine
    elf[20] = 1; // e_version
    elf[32] = 64; // e_phoff
    elf[54] = 56; // e_phentsize
    elf[56] = 2; // e_phnum
    let mut header = |at: usize, kind: u32, fields: [u64; 6]| {
        elf[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (index, field) in fields.iter().enumerate() {
            let at = at + 8 + index * 8;
            elf[at..at + 8].copy_from_slice(&field.to_le_bytes());
        }
    };
    header(64, PT_LOAD, [196, 0, 1 << 20, 16, 64, 4096]);
    header(64 + 56, PT_NOTE, [176, 0, 0, 20, 20, 4]);
    for word in [4u32, 4, PHYS32_ENTRY as u32] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(b"Xen\0");
    elf.extend(0x100_0000u32.to_le_bytes());
    elf.extend([0x90; 16]);
    elf
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn segments_and_entry_are_found() {
        let kernel = parse(Cursor::new(sample())).unwrap();
        assert_eq!(kernel.entry, 0x100_0000);
        let segment = Segment {
            offset: 196,
            address: 1 << 20,
            length: 16,
            memory_length: 64,
        };
        assert_eq!(kernel.segments, [segment]);
    }

    #[test]
    fn a_note_of_another_name_is_no_entry() {
        let mut kernel = sample();
        kernel[176 + 12] = b'G';
        assert_eq!(
            parse(Cursor::new(kernel)).unwrap_err(),
            "has no PVH entry note"
        );
    }

    #[test]
    fn addresses_that_wrap_are_refused() {
        let mut kernel = sample();
        kernel[64 + 24..64 + 32].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(parse(Cursor::new(kernel)).unwrap_err().contains("segments"));
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_or_read(at in 0usize..212, byte: u8, length in 0usize..212) {
            let mut kernel = sample();
            kernel[at] = byte;
            kernel.truncate(length.max(at));
            let _ = parse(Cursor::new(kernel));
        }
    }
}
