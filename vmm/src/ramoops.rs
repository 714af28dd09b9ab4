//! Reads the guest kernel's log and panic record out of the memory that it leaves behind: Linux' ramoops layout
//! (fs/pstore/ram.c, ram_core.c), parsed from bytes that the guest may have written at will.
//!
//! ```text
//! ┌──────────┬──────────┬─────────────────────┐   each zone: sig "DBGC", start, size (u32), then a ring of bytes
//! │ record 0 │ record 1 │      console        │   record: "====<sec>.<usec>-D\n" "Panic#1 Part1\n" log …
//! └──────────┴──────────┴─────────────────────┘
//! ```

/// Bytes of the whole region.
pub const REGION_BYTES: u64 = 256 << 10;
const CONSOLE_BYTES: usize = 128 << 10;
const RECORD_BYTES: usize = 64 << 10;
const SIGNATURE: u32 = 0x4347_4244;
const HEADER_BYTES: usize = 12;
/// The tail that is kept of the log.
const TAIL_BYTES: usize = 4096;

/// What the guest left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remains {
    /// The kernel's last words on why it panicked, if it did.
    pub panic: Option<String>,
    /// The last lines of its log, oldest first, at most 4 KiB, printable characters only.
    pub log: Vec<String>,
}

/// The options that make Linux use the region at `base` in the way in which [`parse`] reads it.
pub fn kernel_options(base: u64) -> String {
    // mem_type=2: cached, as any RAM. max_reason=1: records are written for panics only. Compression would hide the text.
    format!(
        "ramoops.mem_address={base:#x} ramoops.mem_size={REGION_BYTES:#x} ramoops.record_size={RECORD_BYTES:#x} \
         ramoops.console_size={CONSOLE_BYTES:#x} ramoops.ftrace_size=0 ramoops.pmsg_size=0 \
         ramoops.mem_type=2 ramoops.max_reason=1 pstore.compress=none"
    )
}

/// Reads the region. Total: any bytes at all give an answer.
pub fn parse(region: &[u8]) -> Remains {
    let records_end = region.len().saturating_sub(CONSOLE_BYTES);
    let (records, console) = region.split_at(records_end);
    let record = records
        .chunks(RECORD_BYTES)
        .filter_map(zone_text)
        .find(|text| text.starts_with(b"===="));
    let console = zone_text(console).unwrap_or_default();
    match record {
        Some(record) => {
            let log = tail(record_body(&record).unwrap_or(&console));
            Remains {
                panic: Some(panic_line(&log)),
                log,
            }
        }
        None => Remains {
            panic: None,
            log: tail(&console),
        },
    }
}

/// The bytes of a zone's ring in the order in which they were written.
fn zone_text(zone: &[u8]) -> Option<Vec<u8>> {
    let (header, ring) = zone.split_at_checked(HEADER_BYTES)?;
    let word = |at: usize| {
        header
            .get(at..at + 4)
            .and_then(|b| b.first_chunk().copied())
            .map(u32::from_le_bytes)
    };
    if word(0)? != SIGNATURE {
        return None;
    }
    let start = usize::try_from(word(4)?).ok()?;
    let size = usize::try_from(word(8)?).ok()?;
    let written = ring.get(..size)?;
    // Until the ring is full the text begins at 0 and `start` is where it ends; then at `start`.
    let (newer, older) = written.split_at_checked(start)?;
    Some([older, newer].concat())
}

/// The text of a record behind its header lines; nothing if it is compressed.
fn record_body(record: &[u8]) -> Option<&[u8]> {
    let end = record.iter().position(|byte| *byte == b'\n')?;
    let (header, rest) = record.split_at(end);
    if header.ends_with(b"-C") {
        return None;
    }
    rest.get(1..)
}

fn panic_line(log: &[String]) -> String {
    const MARK: &str = "Kernel panic - not syncing: ";
    log.iter()
        .find_map(|line| line.split_once(MARK))
        .map_or_else(
            || "its log does not say why".to_owned(),
            |(_, why)| why.to_owned(),
        )
}

/// The last whole lines that fit into 4 KiB, without what a terminal could take for a command.
fn tail(text: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let mut lines = Vec::new();
    let mut room = TAIL_BYTES;
    for line in text.lines().rev() {
        let line: String = line
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect();
        match room.checked_sub(line.len() + 1) {
            Some(left) => room = left,
            None => break,
        }
        lines.push(line);
    }
    lines.reverse();
    lines
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region() -> Vec<u8> {
        vec![0; REGION_BYTES as usize]
    }

    fn put(region: &mut [u8], at: usize, start: u32, text: &[u8]) {
        region[at..at + 4].copy_from_slice(&SIGNATURE.to_le_bytes());
        region[at + 4..at + 8].copy_from_slice(&start.to_le_bytes());
        region[at + 8..at + 12].copy_from_slice(&(text.len() as u32).to_le_bytes());
        region[at + 12..at + 12 + text.len()].copy_from_slice(text);
    }

    const CONSOLE: usize = REGION_BYTES as usize - CONSOLE_BYTES;

    #[test]
    fn an_orderly_end_leaves_a_log_and_no_panic() {
        let mut region = region();
        let text = b"[    0.1] one\n[    0.2] two\n";
        put(&mut region, CONSOLE, text.len() as u32, text);
        let remains = parse(&region);
        assert_eq!(remains.panic, None);
        assert_eq!(remains.log, ["[    0.1] one", "[    0.2] two"]);
    }

    #[test]
    fn a_panic_record_is_found_and_explained() {
        let mut region = region();
        let text = b"====1700000000.000123-D\nPanic#1 Part1\n<0>[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n";
        put(&mut region, RECORD_BYTES, text.len() as u32, text);
        let remains = parse(&region);
        assert_eq!(remains.panic.as_deref(), Some("Attempted to kill init!"));
        assert_eq!(remains.log.len(), 2);
    }

    #[test]
    fn a_compressed_record_is_a_panic_too() {
        let mut region = region();
        put(&mut region, 0, 17, b"====1.000001-C\n\x78\x9c");
        assert!(parse(&region).panic.is_some());
    }

    #[test]
    fn a_full_ring_is_read_from_its_start() {
        let mut region = region();
        put(&mut region, CONSOLE, 3, b"ew\nold\nn");
        assert_eq!(parse(&region).log, ["old", "new"]);
    }

    #[test]
    fn the_tail_is_bounded_and_harmless() {
        let mut region = region();
        let text = "\x1b[2Jattack\n".repeat(1000);
        put(&mut region, CONSOLE, text.len() as u32, text.as_bytes());
        let log = parse(&region).log;
        assert!(log.iter().map(|line| line.len() + 1).sum::<usize>() <= TAIL_BYTES);
        assert!(log.iter().all(|line| line == "?[2Jattack"));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(noise in proptest::collection::vec(any::<u8>(), 0..512), at in 0usize..0x40000, start: u32, size: u32) {
            let mut region = region();
            let end = region.len().min(at + noise.len());
            region[at..end].copy_from_slice(&noise[..end - at]);
            for zone in [0, RECORD_BYTES, CONSOLE] {
                region[zone..zone + 4].copy_from_slice(&SIGNATURE.to_le_bytes());
                region[zone + 4..zone + 8].copy_from_slice(&start.to_le_bytes());
                region[zone + 8..zone + 12].copy_from_slice(&(size % 0x20000).to_le_bytes());
            }
            let remains = parse(&region);
            prop_assert!(remains.log.iter().map(|line| line.len() + 1).sum::<usize>() <= TAIL_BYTES);
            parse(&noise);
        }
    }
}
