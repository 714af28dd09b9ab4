//! The copying itself: plain blocking threads, because a user's descriptor may be a file, a pipe or a terminal, and
//! making it non-blocking would make it so for everyone who shares it.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    event::{PollFd, PollFlags},
    io::Errno,
};

/// Large enough that system calls don't matter, small enough that nobody notices.
const BUFFER: usize = 128 << 10;

/// Copies our standard input to the container until either ends. Reads only when there is something to read, and never
/// while the container has not taken what was read before.
pub fn send_stdin(socket: &UnixStream) -> io::Result<()> {
    let stdin = Descriptor(rustix::stdio::stdin());
    let result = send(stdin.0, &mut { stdin }, socket);
    // The container sees the end of its input; its peer may be gone already.
    let _ = socket.shutdown(Shutdown::Write);
    result
}

/// One of our own descriptors, unbuffered, unlike `std::io::stdin` and its siblings.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor(pub BorrowedFd<'static>);

impl Read for Descriptor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self.0, buffer)?)
    }
}

impl Write for Descriptor {
    /// Waits for room when the user's descriptor happens to be non-blocking.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(self.0, bytes) {
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
                    rustix::event::poll(&mut fds, None)?;
                }
                result => return Ok(result?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(source: impl AsFd, reader: &mut impl Read, mut socket: &UnixStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        if !wait_for_input(&source, socket)? {
            return Ok(());
        }
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => socket.write_all(&buffer[..count])?,
            Err(error)
                if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            // A terminal that was hung up.
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// `false`: the container no longer listens.
fn wait_for_input(source: &impl AsFd, socket: &UnixStream) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(source, PollFlags::IN),
        PollFd::new(socket, PollFlags::empty()),
    ];
    loop {
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if fds[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            return Ok(false);
        }
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
    }
}

/// Copies one of the container's output streams to `sink` until it ends; `first` is called when bytes came for the
/// first time. If nobody reads `sink` any more, the connection is closed, so that the container's writer gets EPIPE as
/// it would without us.
pub fn receive(
    mut socket: &UnixStream,
    sink: &mut impl Write,
    first: impl FnOnce(),
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut first = Some(first);
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                if let Some(first) = first.take() {
                    first();
                }
                sink.write_all(&buffer[..count])?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The guest died; what it had sent has arrived.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, thread};

    fn noise(count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        crate::pod::fill_random(&mut bytes);
        bytes
    }

    #[test]
    fn input_arrives_byte_for_byte_and_ends() {
        let sent = noise(3 << 20);
        let file = tempfile::tempfile().unwrap();
        (&file).write_all(&sent).unwrap();
        io::Seek::rewind(&mut (&file)).unwrap();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let sender = thread::spawn(move || {
            send(&file, &mut &file, &ours).unwrap();
            ours.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        theirs.read_to_end(&mut received).unwrap();
        sender.join().unwrap();
        assert!(received == sent);
    }

    #[test]
    fn a_container_that_left_ends_the_copy_though_no_input_comes() {
        let (read_end, _write_end) = io::pipe().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let file = File::from(std::os::fd::OwnedFd::from(read_end));
        send(&file, &mut &file, &ours).unwrap();
    }

    #[test]
    fn output_arrives_byte_for_byte() {
        let sent = noise(1 << 20);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let copy = sent.clone();
        let sender = thread::spawn(move || theirs.write_all(&copy).unwrap());
        let mut received = Vec::new();
        let mut firsts = 0;
        receive(&ours, &mut received, || firsts += 1).unwrap();
        sender.join().unwrap();
        assert!(received == sent);
        assert_eq!(firsts, 1);
    }

    #[test]
    fn a_reader_that_left_ends_the_copy() {
        let (read_end, mut write_end) = io::pipe().unwrap();
        drop(read_end);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        let error = receive(&ours, &mut write_end, || ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    }
}
