//! The frames that `cargo dev host` and the daemon in the virtual host exchange, one connection per command.
//!
//! A frame is one byte of kind, four bytes of length (big-endian), and the payload. The client sends
//! [`Frame::Start`] first; the host ends the conversation with [`Frame::Exit`] or [`Frame::Refused`].

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The TCP port that the daemon listens on inside the virtual host.
pub const PORT: u16 = 1023;

/// No frame is larger; a length above it means that the peer speaks something else.
const LIMIT_BYTES: u32 = 1 << 20;

/// A command to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Proves that the client may give orders to this host.
    pub token: String,
    /// Program and arguments; the program is looked up in PATH.
    pub argv: Vec<String>,
    /// Added to the daemon's own environment.
    pub environment: Vec<(String, String)>,
    /// Where it runs.
    pub directory: PathBuf,
}

/// One message, in either direction.
#[derive(Debug)]
pub enum Frame {
    /// Client: run this.
    Start(Order),
    /// Client: bytes for its stdin.
    Stdin(Vec<u8>),
    /// Client: its stdin ends here.
    StdinEnd,
    /// Client: nothing; that it arrives is all.
    Tick,
    /// Host: bytes of its stdout.
    Stdout(Vec<u8>),
    /// Host: bytes of its stderr.
    Stderr(Vec<u8>),
    /// Host: it ended with this code, 128 + n for a signal; its output is complete.
    Exit(i32),
    /// Host: it could not be run, and why.
    Refused(String),
}

impl Frame {
    /// Reads one frame; an end of file between frames is `UnexpectedEof`.
    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [0; 5];
        from.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length);
        if length > LIMIT_BYTES {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut payload = vec![0; length as usize];
        from.read_exact(&mut payload)?;
        Ok(match kind {
            b'S' => Self::Start(serde_json::from_slice(&payload)?),
            b'i' => Self::Stdin(payload),
            b'e' => Self::StdinEnd,
            b't' => Self::Tick,
            b'1' => Self::Stdout(payload),
            b'2' => Self::Stderr(payload),
            b'x' => Self::Exit(serde_json::from_slice(&payload)?),
            b'r' => Self::Refused(String::from_utf8_lossy(&payload).into_owned()),
            other => return Err(invalid(format!("a frame of kind {other}"))),
        })
    }

    /// Writes one frame in one piece.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = match self {
            Self::Start(order) => (b'S', serde_json::to_vec(order)?),
            Self::Stdin(bytes) => (b'i', bytes.clone()),
            Self::StdinEnd => (b'e', Vec::new()),
            Self::Tick => (b't', Vec::new()),
            Self::Stdout(bytes) => (b'1', bytes.clone()),
            Self::Stderr(bytes) => (b'2', bytes.clone()),
            Self::Exit(code) => (b'x', serde_json::to_vec(code)?),
            Self::Refused(reason) => (b'r', reason.clone().into_bytes()),
        };
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        if length > LIMIT_BYTES {
            return Err(invalid(format!("a frame of {length} bytes")));
        }
        let mut frame = Vec::with_capacity(payload.len() + 5);
        frame.push(kind);
        frame.extend_from_slice(&length.to_be_bytes());
        frame.extend_from_slice(&payload);
        to.write_all(&frame)?;
        to.flush()
    }
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn there_and_back(frame: &Frame) -> Frame {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        Frame::read(&mut bytes.as_slice()).unwrap()
    }

    #[test]
    fn output_arrives_as_sent() {
        let bytes: Vec<u8> = (0..=255).collect();
        assert!(
            matches!(there_and_back(&Frame::Stdout(bytes.clone())), Frame::Stdout(b) if b == bytes)
        );
    }

    #[test]
    fn exit_code_arrives_as_sent() {
        assert!(matches!(
            there_and_back(&Frame::Exit(137)),
            Frame::Exit(137)
        ));
    }

    #[test]
    fn large_frame_is_refused_before_it_is_read() {
        let error = Frame::read(&mut [b'1', 0xff, 0, 0, 0].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn cut_frame_is_an_end_of_file() {
        let error = Frame::read(&mut [b'1', 0, 0, 0, 9, 1].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
