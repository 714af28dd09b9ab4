//! What a process' keeper, the host process that stands for it, and the agent say to each other: one line a message.
//!
//! ```text
//! keeper                                     agent
//!   ◄─── dials Stdio.keeper_port ───────────   before the process is made
//!   signal 15\n, resize 80 24\n ───────────►   for that process
//!   ◄──────────────────────── exit 0 0\n ───   when it has ended and its output streams too
//! ```
//! A connection that ends before `exit` is the end of the other side: the agent kills the process, the keeper reports it
//! as killed.

use std::{fmt, str::FromStr};

/// No message is longer than this, its newline included.
pub const MAX_MESSAGE: usize = 64;

/// What a keeper wants of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Send it this signal.
    Signal(u32),
    /// Its terminal has this size now.
    Resize {
        /// Characters in a line.
        columns: u32,
        /// Lines.
        rows: u32,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Exit code, or 128 + the signal.
    pub status: u32,
    /// Its container ran out of memory.
    pub oom_killed: bool,
}

/// A line that is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a keeper's message: {0:?}")]
pub struct NotAMessage(String);

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal(signal) => writeln!(f, "signal {signal}"),
            Self::Resize { columns, rows } => writeln!(f, "resize {columns} {rows}"),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exit {} {}", self.status, u8::from(self.oom_killed))
    }
}

impl FromStr for Wish {
    type Err = NotAMessage;

    fn from_str(line: &str) -> Result<Self, NotAMessage> {
        let words = words(line);
        match words.as_ref().map(|(verb, numbers)| (*verb, &numbers[..])) {
            Some(("signal", [signal])) => Ok(Self::Signal(*signal)),
            Some(("resize", [columns, rows])) => Ok(Self::Resize {
                columns: *columns,
                rows: *rows,
            }),
            _ => Err(NotAMessage(line.into())),
        }
    }
}

impl FromStr for Ended {
    type Err = NotAMessage;

    fn from_str(line: &str) -> Result<Self, NotAMessage> {
        let words = words(line);
        match words.as_ref().map(|(verb, numbers)| (*verb, &numbers[..])) {
            Some(("exit", [status, oom @ (0 | 1)])) => Ok(Self {
                status: *status,
                oom_killed: *oom == 1,
            }),
            _ => Err(NotAMessage(line.into())),
        }
    }
}

/// The first word and the numbers after it.
fn words(line: &str) -> Option<(&str, Vec<u32>)> {
    let mut words = line.trim_end_matches('\n').split(' ');
    let verb = words.next()?;
    let numbers = words.map(str::parse).collect::<Result<_, _>>();
    Some((verb, numbers.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_way() {
        for wish in [
            Wish::Signal(15),
            Wish::Resize {
                columns: 80,
                rows: u32::MAX,
            },
        ] {
            assert!(wish.to_string().len() <= MAX_MESSAGE);
            assert_eq!(wish.to_string().parse(), Ok(wish));
        }
        let ended = Ended {
            status: 137,
            oom_killed: true,
        };
        assert_eq!(ended.to_string().parse(), Ok(ended));
    }

    #[test]
    fn noise_is_refused() {
        for line in [
            "",
            "signal",
            "signal x",
            "signal 1 2",
            "exit 0",
            "exit 0 2",
            "signal -1",
        ] {
            assert!(line.parse::<Wish>().is_err(), "{line}");
            assert!(line.parse::<Ended>().is_err(), "{line}");
        }
    }
}
