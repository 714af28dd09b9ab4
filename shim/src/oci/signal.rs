//! Signals as people write them: `9`, `KILL`, `SIGKILL`, `sigkill`, `RTMIN+3`.

use super::error::OciError;

const NAMES: [(&str, u32); 33] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// As programs see them: the first two are libc's own (signal(7)).
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// The number of a signal: those of x86_64 and aarch64, which are the same.
///
/// # Errors
/// There is no such signal.
pub fn parse(text: &str) -> Result<u32, OciError> {
    let unknown = || OciError::Refused(format!("unknown signal {text:?}"));
    if let Ok(number) = text.parse() {
        return match number {
            0..=RTMAX => Ok(number),
            _ => Err(unknown()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    realtime(name).ok_or_else(unknown)
}

fn realtime(name: &str) -> Option<u32> {
    let number = if let Some(above) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(above, '+')?)?
    } else {
        RTMAX.checked_sub(offset(name.strip_prefix("RTMAX")?, '-')?)?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

fn offset(text: &str, sign: char) -> Option<u32> {
    match text {
        "" => Some(0),
        _ => text.strip_prefix(sign)?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for text in ["9", "KILL", "SIGKILL", "sigkill"] {
            assert_eq!(parse(text).unwrap(), 9, "{text}");
        }
        assert_eq!(parse("SIGRTMIN+3").unwrap(), 37);
        assert_eq!(parse("RTMAX-1").unwrap(), 63);
        assert_eq!(parse("0").unwrap(), 0);
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in ["", "SIG", "NOPE", "65", "-1", "RTMIN+99", "RTMAX-40"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
