//! One Unix socket of a connection, and the bytes for it that it did not take yet.

use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, setsockopt, sockopt};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::connection::BUF_ALLOC;

/// What a read from the host socket came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// This many bytes; never 0.
    Bytes(u32),
    /// Nothing now; epoll will tell.
    Empty,
    /// Nothing, ever: end of file or an error, which for a socket of this machine means that its peer is gone.
    Eof,
}

/// The host socket no longer takes bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// A non-blocking Unix socket with a backlog; the backlog's bound is the connection's credit.
#[derive(Debug)]
pub struct Stream {
    socket: UnixStream,
    backlog: Vec<u8>,
    /// How many bytes of the backlog were written already.
    start: usize,
    write_closed: bool,
}

impl Stream {
    /// `socket` must be non-blocking.
    pub fn new(socket: UnixStream) -> Self {
        Self {
            socket,
            backlog: Vec::new(),
            start: 0,
            write_closed: false,
        }
    }

    /// For epoll.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Bytes accepted but not yet written.
    pub fn backlog_len(&self) -> usize {
        self.backlog.len() - self.start
    }

    /// Reads into `slices`, one after the other, until one is not filled.
    pub fn read<'a>(&self, slices: impl Iterator<Item = VolatileSlice<'a>>) -> Received {
        let mut count = 0;
        for mut slice in slices {
            match retry(|| (&self.socket).read_volatile(&mut slice)) {
                Ok(0) if count == 0 => return Received::Eof,
                Ok(got) => {
                    count += got;
                    if got < slice.len() {
                        break;
                    }
                }
                Err(_) if count > 0 => break,
                Err(error) if would_block(&error) => return Received::Empty,
                Err(_) => return Received::Eof,
            }
        }
        // A packet holds 64 KiB at most.
        u32::try_from(count).map_or(Received::Eof, |count| match count {
            0 => Received::Empty,
            count => Received::Bytes(count),
        })
    }

    /// Takes all of `slices`: straight into the socket while it accepts, into the backlog from then on.
    /// Returns how many bytes went into the socket.
    ///
    /// # Errors
    /// The socket takes nothing any more; the rest is not kept.
    pub fn write<'a>(
        &mut self,
        slices: impl Iterator<Item = VolatileSlice<'a>>,
    ) -> Result<u32, Gone> {
        let mut written = 0;
        for mut slice in slices {
            while self.backlog_len() == 0 && !slice.is_empty() {
                match retry(|| (&self.socket).write_volatile(&slice)) {
                    Ok(0) => return Err(Gone),
                    Ok(count) => {
                        written += count;
                        slice = slice.offset(count).map_err(|_| Gone)?;
                    }
                    Err(error) if would_block(&error) => break,
                    Err(_) => return Err(Gone),
                }
            }
            self.keep(&slice);
        }
        u32::try_from(written).map_err(|_| Gone)
    }

    fn keep(&mut self, slice: &VolatileSlice<'_>) {
        if slice.is_empty() {
            return;
        }
        if self.backlog.capacity() == 0 {
            self.backlog.reserve_exact(BUF_ALLOC as usize);
        }
        if self.backlog.capacity() - self.backlog.len() < slice.len() {
            self.backlog.drain(..self.start);
            self.start = 0;
        }
        let end = self.backlog.len();
        self.backlog.resize(end + slice.len(), 0);
        slice.copy_to(&mut self.backlog[end..]);
    }

    /// Writes what the backlog holds, as far as the socket takes it; returns how many bytes it took.
    ///
    /// # Errors
    /// The socket takes nothing any more.
    pub fn flush(&mut self) -> Result<u32, Gone> {
        let mut written = 0;
        while self.backlog_len() > 0 {
            match self.socket.write(&self.backlog[self.start..]) {
                Ok(0) => return Err(Gone),
                Ok(count) => {
                    self.start += count;
                    written += count;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return Err(Gone),
            }
        }
        if self.backlog_len() == 0 {
            self.forget();
        }
        u32::try_from(written).map_err(|_| Gone)
    }

    /// Drops the backlog and returns its length in bytes. An idle connection holds no memory.
    pub fn forget(&mut self) -> u32 {
        let dropped = self.backlog_len();
        self.backlog = Vec::new();
        self.start = 0;
        u32::try_from(dropped).unwrap_or(u32::MAX)
    }

    /// Writes a short line that the protocol with the host program asks for.
    ///
    /// # Errors
    /// The host program is gone, or never read what it was sent before.
    pub fn write_line(&mut self, line: &str) -> io::Result<()> {
        self.socket.write_all(line.as_bytes())
    }

    /// End of file for the host program, once.
    pub fn close_write(&mut self) {
        if !std::mem::replace(&mut self.write_closed, true) {
            // Fails only if the peer is gone, which epoll reports.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }

    /// The guest won't read: the host program's next write fails with EPIPE instead of going nowhere.
    pub fn close_read(&self) {
        let _ = self.socket.shutdown(Shutdown::Read);
    }
}

/// Whatever ends a connection (its guest, a broken protocol, a device reset, the VM's end), the host program reads all
/// that was accepted for it, and then end of file; or ECONNRESET, by Linux' own doing (`unix_release_sock`), if bytes of
/// its own are left that never went to the guest.
impl Drop for Stream {
    fn drop(&mut self) {
        let left = self.backlog_len();
        if left == 0 {
            return;
        }
        // The kernel keeps what a full socket was given, also after this process. The limit is on memory and not on
        // bytes: `left` fits even if none of it were free, because Linux doubles the number for its overhead.
        let now = getsockopt(&self.socket, sockopt::SndBuf).unwrap_or(0);
        let room = now.saturating_add(left);
        let raised = setsockopt(&self.socket, sockopt::SndBufForce, &room)
            .or_else(|_| setsockopt(&self.socket, sockopt::SndBuf, &room));
        let flushed = self.flush();
        if raised.is_err() || (flushed.is_ok() && self.backlog_len() > 0) {
            tracing::debug!(
                bytes = self.backlog_len(),
                "vsock: bytes for a host program that doesn't read are lost"
            );
        }
    }
}

fn retry<T>(
    mut call: impl FnMut() -> Result<T, VolatileMemoryError>,
) -> Result<T, VolatileMemoryError> {
    loop {
        match call() {
            Err(VolatileMemoryError::IOError(e)) if e.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn would_block(error: &VolatileMemoryError) -> bool {
    matches!(error, VolatileMemoryError::IOError(e) if e.kind() == ErrorKind::WouldBlock)
}
