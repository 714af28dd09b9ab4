//! A process' streams: each is a connection to the host on one side and a pipe, or the terminal, on the other.
//!
//! Not the connection itself as the process' stdio: /dev/stdout of a socket can't be opened again. Back-pressure is whole: a full
//! connection stops the reading of the pipe, a full pipe stops the process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::host::{Dialer, HostStream};
use crate::spec::Owner;

/// One read and one write, and what the agent holds per stream that moves.
const BLOCK: usize = 64 * 1024;

/// The host's ports, 0 for none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ports {
    pub stdin: u32,
    pub stdout: u32,
    pub stderr: u32,
    /// Not a stream: the host process that stands for the process.
    pub keeper: u32,
}

/// A process' streams before the process exists: connected to the host, nothing moves yet.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<HostStream>,
    stdout: Option<HostStream>,
    stderr: Option<HostStream>,
    /// See [`crate::keeper`].
    pub keeper: Option<HostStream>,
    pipes: Option<Pipes>,
}

/// The agent's ends.
#[derive(Debug)]
struct Pipes {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Dials the host for each stream and makes the pipes, if it is not a terminal. The second part of the answer is the process' ends.
    ///
    /// # Errors
    /// The host does not answer on a port.
    pub async fn open(
        dialer: &Dialer,
        ports: Ports,
        terminal: bool,
        owner: Owner,
    ) -> io::Result<(Self, Vec<OwnedFd>)> {
        let dial = async |port: u32| match port {
            0 => Ok(None),
            port => dialer.dial(port).await.map(Some),
        };
        let mut streams = Self {
            stdin: dial(ports.stdin).await?,
            stdout: dial(ports.stdout).await?,
            stderr: dial(ports.stderr).await?,
            keeper: dial(ports.keeper).await?,
            pipes: None,
        };
        if terminal {
            return Ok((streams, Vec::new()));
        }
        let (stdin, stdin_agent) = if ports.stdin == 0 {
            (null()?, None)
        } else {
            pipe(Direction::ToProcess, owner)?
        };
        let (stdout, stdout_agent) = if ports.stdout == 0 {
            (null()?, None)
        } else {
            pipe(Direction::FromProcess, owner)?
        };
        let (stderr, stderr_agent) = if ports.stderr == 0 {
            (null()?, None)
        } else {
            pipe(Direction::FromProcess, owner)?
        };
        streams.pipes = Some(Pipes {
            stdin: stdin_agent,
            stdout: stdout_agent,
            stderr: stderr_agent,
        });
        Ok((streams, vec![stdin, stdout, stderr]))
    }

    /// Starts to move bytes. `exited` turns true when the process has. The set ends when the output streams have ended.
    ///
    /// # Errors
    /// The descriptors can't be polled.
    pub fn pump(
        self,
        terminal: Option<&OwnedFd>,
        exited: watch::Receiver<bool>,
    ) -> io::Result<JoinSet<()>> {
        let mut outputs = JoinSet::new();
        let (input, output, error) = match (self.pipes, terminal) {
            (Some(pipes), _) => (pipes.stdin, pipes.stdout, pipes.stderr),
            (None, Some(terminal)) => (
                Some(terminal.try_clone()?),
                Some(terminal.try_clone()?),
                None,
            ),
            (None, None) => (None, None, None),
        };
        if let (Some(from), Some(to)) = (self.stdin, input) {
            let to = polled(to)?;
            let mut exited = exited.clone();
            // Not part of the set: what the host still sends to a process that has ended goes nowhere.
            tokio::spawn(async move {
                tokio::select! {
                    () = copy_in(from, to) => {}
                    _ = exited.wait_for(|ended| *ended) => {}
                }
            });
        }
        for (from, to) in [(output, self.stdout), (error, self.stderr)] {
            if let (Some(from), Some(to)) = (from, to) {
                outputs.spawn(copy_out(polled(from)?, to, exited.clone()));
            }
        }
        Ok(outputs)
    }
}

enum Direction {
    ToProcess,
    FromProcess,
}

/// The process' end and ours. Both belong to the container's user, or it could not open /dev/stdout again.
fn pipe(direction: Direction, owner: Owner) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    nix::unistd::fchown(&read, Some(owner.uid.into()), Some(owner.gid.into()))?;
    Ok(match direction {
        Direction::ToProcess => (read, Some(write)),
        Direction::FromProcess => (write, Some(read)),
    })
}

fn null() -> io::Result<OwnedFd> {
    Ok(std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into())
}

/// Only our end of a pipe becomes non-blocking: the flag belongs to the open file, and the ends are two.
fn polled(fd: OwnedFd) -> io::Result<Arc<AsyncFd<OwnedFd>>> {
    let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(
        &fd,
        nix::fcntl::FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK),
    )?;
    // SAFETY: an OwnedFd keeps its number and stays open for as long as it lives, and the AsyncFd owns it.
    Ok(Arc::new(unsafe { AsyncFd::register(fd) }?))
}

/// Host to process, until the host ends the stream or the process no longer reads. Dropping the pipe is the process' end of file;
/// a terminal has none, so there the end of the host's stream means nothing.
async fn copy_in(mut from: impl AsyncRead + Unpin, to: Arc<AsyncFd<OwnedFd>>) {
    let mut block = vec![0; BLOCK];
    loop {
        let Ok(count @ 1..) = from.read(&mut block).await else {
            return;
        };
        let mut rest = block.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            let Ok(mut ready) = to.writable().await else {
                return;
            };
            match ready.try_io(|fd| Ok(nix::unistd::write(fd.as_fd(), rest)?)) {
                Ok(Ok(written)) => rest = rest.get(written..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(_)) => return,
                Err(_would_block) => {}
            }
        }
    }
}

/// Process to host, until the stream ends; after the process' exit until nothing is left in it. A daemon that an exec left behind
/// may hold the pipe for ever, and must not hold the exit status with it.
async fn copy_out<W: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    from: Arc<AsyncFd<OwnedFd>>,
    mut to: W,
    mut exited: watch::Receiver<bool>,
) {
    let mut block = vec![0; BLOCK];
    loop {
        let count = tokio::select! {
            biased;
            count = read(&from, &mut block) => count,
            _ = exited.wait_for(|ended| *ended) => break,
        };
        let Ok(count @ 1..) = count else { break };
        if to
            .write_all(block.get(..count).unwrap_or_default())
            .await
            .is_err()
        {
            // The host reads no more: the process learns it from its next write.
            return;
        }
    }
    // Straight from the kernel, not through tokio's idea of readiness, which may lag behind the exit.
    while let Ok(count @ 1..) = nix::unistd::read(from.get_ref().as_fd(), &mut block) {
        if to
            .write_all(block.get(..count).unwrap_or_default())
            .await
            .is_err()
        {
            return;
        }
    }
    drop(from);
    let _ = to.shutdown().await;
    // Closing is left to the host: a close of ours could overtake what is on its way. It holds nobody up.
    tokio::spawn(async move {
        let mut rest = [0; 16];
        while let Ok(1..) = to.read(&mut rest).await {}
    });
}

async fn read(from: &AsyncFd<OwnedFd>, block: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = from.readable().await?;
        match ready.try_io(|fd| Ok(nix::unistd::read(fd.as_fd(), block)?)) {
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal whose last user is gone.
            Ok(Err(error)) if error.raw_os_error() == Some(Errno::EIO as i32) => return Ok(0),
            Ok(result) => return result,
            Err(_would_block) => {}
        }
    }
}

/// How a new terminal is to be before anybody uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalMode {
    /// Columns and rows; None for none.
    pub size: Option<(u32, u32)>,
    /// Output stays as it is written: no carriage return comes before a newline.
    pub plain_newlines: bool,
}

impl TerminalMode {
    /// Sets it, on either side of the terminal.
    ///
    /// # Errors
    /// It is no terminal.
    pub fn apply(&self, terminal: &OwnedFd) -> io::Result<()> {
        use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
        if let Some((columns, rows)) = self.size {
            resize(terminal, columns, rows)?;
        }
        if self.plain_newlines {
            let mut settings = tcgetattr(terminal)?;
            settings.output_flags.remove(OutputFlags::ONLCR);
            tcsetattr(terminal, SetArg::TCSANOW, &settings)?;
        }
        Ok(())
    }
}

/// Sets a terminal's size in characters (TIOCSWINSZ); its foreground processes get SIGWINCH.
///
/// # Errors
/// It is no terminal.
pub fn resize(terminal: &OwnedFd, columns: u32, rows: u32) -> io::Result<()> {
    let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = libc::winsize {
        ws_row: cells(rows),
        ws_col: cells(columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives across the call.
    Errno::result(unsafe {
        libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ as _, &raw const size)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn from_process() -> (std::fs::File, Arc<AsyncFd<OwnedFd>>) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        (write.into(), polled(read).unwrap())
    }

    #[tokio::test]
    async fn output_before_the_exit_is_delivered_though_a_daemon_holds_the_pipe() {
        let (mut process, pipe) = from_process();
        let (host, agent) = tokio::net::UnixStream::pair().unwrap();
        let (exit, exited) = watch::channel(false);
        process.write_all(b"last words").unwrap();
        exit.send(true).unwrap();
        copy_out(pipe, agent, exited).await;
        let mut text = String::new();
        let mut host = host;
        host.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "last words");
        // The daemon is still there, and learns that nobody listens.
        assert!(process.write_all(b"x").is_err());
    }

    #[tokio::test]
    async fn a_megabyte_arrives_as_it_was() {
        let (mut process, pipe) = from_process();
        let (mut host, agent) = tokio::net::UnixStream::pair().unwrap();
        let (_exit, exited) = watch::channel(false);
        let bytes: Vec<u8> = (0..1_000_003u32).map(|i| ((i * 31) >> 3) as u8).collect();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || process.write_all(&sent).unwrap());
        let pump = tokio::spawn(copy_out(pipe, agent, exited));
        let mut received = Vec::new();
        host.read_to_end(&mut received).await.unwrap();
        writer.join().unwrap();
        pump.await.unwrap();
        assert!(received == bytes);
    }

    #[test]
    fn a_terminal_has_its_size_and_newlines_before_it_is_used() {
        let written = |plain_newlines, by_master| {
            let pty = nix::pty::openpty(None, None).unwrap();
            let mode = TerminalMode {
                size: Some((110, 10)),
                plain_newlines,
            };
            let side = if by_master { &pty.master } else { &pty.slave };
            mode.apply(side).unwrap();
            nix::unistd::write(&pty.slave, b"a\nb").unwrap();
            let mut block = [0; 8];
            let count = nix::unistd::read(&pty.master, &mut block).unwrap();
            (size(&pty.slave), block[..count].to_vec())
        };
        for by_master in [false, true] {
            assert_eq!(written(true, by_master), ((110, 10), b"a\nb".to_vec()));
            assert_eq!(written(false, by_master), ((110, 10), b"a\r\nb".to_vec()));
        }
    }

    fn size(terminal: &OwnedFd) -> (u16, u16) {
        let mut size = libc::winsize {
            ws_row: 0,
            ws_col: 0,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: TIOCGWINSZ fills one winsize, which lives across the call.
        let result =
            unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ as _, &raw mut size) };
        assert_eq!(result, 0);
        (size.ws_col, size.ws_row)
    }

    #[tokio::test]
    async fn end_of_the_hosts_stream_is_the_process_end_of_file() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let (mut host, agent) = tokio::net::UnixStream::pair().unwrap();
        host.write_all(b"input").await.unwrap();
        drop(host);
        copy_in(agent, polled(write).unwrap()).await;
        let text = std::io::read_to_string(std::fs::File::from(read)).unwrap();
        assert_eq!(text, "input");
    }
}
