//! Host programs that want in: accepted, but yet to say `CONNECT <port>`.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::listener::Door;
use super::poller::Poller;

/// When to accept again after the process ran out of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);
/// Longer than `CONNECT 4294967295\n`.
const MAX_LINE: usize = 32;

/// The door and those who came in by it.
#[derive(Debug)]
pub struct Lobby {
    door: Door,
    state: DoorState,
    handshakes: HashMap<u64, Handshake>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DoorState {
    /// Epoll will tell of the next one.
    Empty,
    /// Someone may wait.
    Waiting,
    /// Someone waits, but no descriptor is left until then or until a connection ends.
    Blocked(Instant),
}

/// What came of a look at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// One came in.
    One,
    /// Nobody waits, or the door is blocked already.
    None,
    /// The door is blocked from now on, until [`Lobby::retry_at`].
    Blocked,
}

impl Lobby {
    /// Nobody in yet.
    pub fn new(door: Door) -> Self {
        Self {
            door,
            state: DoorState::Waiting,
            handshakes: HashMap::new(),
        }
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.handshakes.len()
    }

    /// Connects to where the host serves `port`; see [`Door::dial`].
    ///
    /// # Errors
    /// As [`Door::dial`].
    pub fn dial(&self, port: u32) -> io::Result<UnixStream> {
        self.door.dial(port)
    }

    /// Epoll reports someone at the door.
    pub fn knock(&mut self) {
        self.state = DoorState::Waiting;
    }

    /// A file descriptor has become free.
    pub fn reopen(&mut self) {
        if let DoorState::Blocked(_) = self.state {
            self.state = DoorState::Waiting;
        }
    }

    /// When a blocked door is to be tried again.
    pub fn retry_at(&self) -> Option<Instant> {
        match self.state {
            DoorState::Blocked(retry) => Some(retry),
            DoorState::Empty | DoorState::Waiting => None,
        }
    }

    /// The timer has fired.
    pub fn time_out(&mut self, now: Instant) {
        if self.retry_at().is_some_and(|retry| retry <= now) {
            self.state = DoorState::Waiting;
        }
    }

    /// Lets the next one in, as `id`.
    pub fn admit(&mut self, id: u64, poller: &Poller) -> Admitted {
        while self.state == DoorState::Waiting {
            let watched = self.door.accept().and_then(|socket| {
                let handshake = Handshake::new(socket);
                poller.watch(handshake.fd(), id)?;
                Ok(handshake)
            });
            match watched {
                Ok(handshake) => {
                    self.handshakes.insert(id, handshake);
                    return Admitted::One;
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => self.state = DoorState::Empty,
                    ErrorKind::Interrupted | ErrorKind::ConnectionAborted => {}
                    _ => {
                        tracing::warn!(%error, "vsock: accept");
                        self.state = DoorState::Blocked(Instant::now() + ACCEPT_RETRY);
                        return Admitted::Blocked;
                    }
                },
            }
        }
        Admitted::None
    }

    /// Reads on from `id`, if it is one of those here. Once its line is complete it leaves: with its socket and the
    /// guest port that it wants, or for good.
    pub fn advance(&mut self, id: u64) -> Option<(UnixStream, u32)> {
        let progress = self.handshakes.get_mut(&id)?.advance();
        if progress == Progress::Waits {
            return None;
        }
        let handshake = self.handshakes.remove(&id)?;
        match progress {
            Progress::Port(port) => Some((handshake.socket, port)),
            Progress::Waits | Progress::Refused => {
                self.reopen();
                None
            }
        }
    }
}

/// One who has still to say which port.
#[derive(Debug)]
struct Handshake {
    socket: UnixStream,
    line: Vec<u8>,
}

/// How far a handshake has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The line is not complete.
    Waits,
    /// It wants this guest port.
    Port(u32),
    /// It hung up or does not speak the protocol.
    Refused,
}

impl Handshake {
    /// `socket` must be non-blocking.
    fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            line: Vec::new(),
        }
    }

    /// For epoll.
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads on, one byte at a time: what follows the line belongs to the guest and must stay in the socket.
    fn advance(&mut self) -> Progress {
        let mut byte = [0];
        while self.line.len() < MAX_LINE {
            match self.socket.read(&mut byte) {
                Ok(0) => return Progress::Refused,
                Ok(_) if byte == *b"\n" => {
                    return parse_connect(&self.line).map_or(Progress::Refused, Progress::Port);
                }
                Ok(_) => self.line.extend_from_slice(&byte),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Waits,
                Err(_) => return Progress::Refused,
            }
        }
        Progress::Refused
    }
}

/// The port of `CONNECT <port>`; anything else is refused.
fn parse_connect(line: &[u8]) -> Option<u32> {
    let digits = line.strip_prefix(b"CONNECT ")?;
    let digits = std::str::from_utf8(digits).ok()?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn only_a_port_in_digits_is_taken() {
        assert_eq!(parse_connect(b"CONNECT 1024"), Some(1024));
        assert_eq!(parse_connect(b"CONNECT 4294967295"), Some(u32::MAX));
        for line in [
            "CONNECT 4294967296",
            "CONNECT +1",
            "CONNECT ",
            "CONNECT",
            "connect 1",
            "",
            "CONNECT 1 2",
        ] {
            assert_eq!(parse_connect(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn bytes_behind_the_line_stay_in_the_socket() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut handshake = Handshake::new(ours);
        theirs.write_all(b"CONN").unwrap();
        assert_eq!(handshake.advance(), Progress::Waits);
        theirs.write_all(b"ECT 7\nhello").unwrap();
        assert_eq!(handshake.advance(), Progress::Port(7));
        let mut rest = [0; 5];
        handshake.socket.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"hello");
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        theirs.write_all(&[b'9'; 1000]).unwrap();
        assert_eq!(Handshake::new(ours).advance(), Progress::Refused);
    }
}
