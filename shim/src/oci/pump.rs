//! One direction of one stream, moved a block at a time whenever poll(2) says that it can go on.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use rustix::{
    event::{PollFd, PollFlags},
    fs::{FileType, Mode, OFlags},
    io::Errno,
};

use super::keeper::unless_it_would_block;

/// Few enough bytes for a small process, enough that system calls don't matter.
const BLOCK: usize = 32 << 10;

/// Where output goes.
#[derive(Debug)]
pub enum Sink {
    /// The terminal that we made. What can't be written any more is thrown away, as the kernel does for a terminal that
    /// was hung up.
    Own(OwnedFd),
    /// Given by whoever started us.
    Theirs(OwnedFd),
}

impl Sink {
    /// An inherited descriptor that others share: a pipe or terminal is opened again, so that it can be non-blocking for
    /// us and stay blocking for them.
    ///
    /// # Errors
    /// It can't be duplicated.
    pub fn inherited(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        let again = || {
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).ok()
        };
        let own = match kind {
            FileType::Fifo | FileType::CharacterDevice => again(),
            _ => None,
        };
        Ok(Self::Theirs(match own {
            Some(own) => own,
            None => fd.try_clone_to_owned()?,
        }))
    }

    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Own(fd) | Self::Theirs(fd) => fd,
        }
    }
}

#[derive(Debug)]
enum Ends {
    Input { from: OwnedFd, to: UnixStream },
    Output { from: UnixStream, to: Sink },
}

/// A stream's direction.
#[derive(Debug)]
pub struct Pump {
    ends: Ends,
    block: Vec<u8>,
    /// What of the block has been written.
    written: usize,
}

impl Pump {
    /// From a descriptor of ours to the container.
    pub fn into(from: OwnedFd, to: UnixStream) -> Self {
        Self::new(Ends::Input { from, to })
    }

    /// From the container to a descriptor of ours.
    pub fn out_of(from: UnixStream, to: Sink) -> Self {
        Self::new(Ends::Output { from, to })
    }

    fn new(ends: Ends) -> Self {
        Self {
            ends,
            block: Vec::new(),
            written: 0,
        }
    }

    fn fds(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        match &self.ends {
            Ends::Input { from, to } => (from.as_fd(), to.as_fd()),
            Ends::Output { from, to } => (from.as_fd(), to.fd().as_fd()),
        }
    }

    /// What poll(2) is to wait for.
    pub fn interests(&self) -> impl Iterator<Item = PollFd<'_>> {
        let (from, to) = self.fds();
        let (from_flags, to_flags) = match self.block.is_empty() {
            true => (Some(PollFlags::IN), None),
            false => (None, Some(PollFlags::OUT)),
        };
        // A container that reads no more ends its input, though none comes.
        let gone = matches!(self.ends, Ends::Input { .. }).then_some(PollFlags::empty());
        let from = from_flags.map(|flags| PollFd::from_borrowed_fd(from, flags));
        let to = to_flags
            .or(gone)
            .map(|flags| PollFd::from_borrowed_fd(to, flags));
        from.into_iter().chain(to)
    }

    /// Moves what can be moved now; whether the stream goes on.
    pub fn turn(&mut self) -> bool {
        loop {
            match self.step() {
                Ok(Step::Moved) => {}
                Ok(Step::Waits) => return true,
                Ok(Step::Ended) | Err(_) => return self.end(),
            }
        }
    }

    fn step(&mut self) -> io::Result<Step> {
        if self.block.is_empty() {
            self.fill()
        } else {
            self.empty()
        }
    }

    fn fill(&mut self) -> io::Result<Step> {
        let (from, to) = self.fds();
        let is_input = matches!(self.ends, Ends::Input { .. });
        if is_input && !is_ready(from, PollFlags::IN)? {
            // Not non-blocking, as others share it: so it is read only when there is something.
            let gone = is_hung_up(to)?;
            return Ok(if gone { Step::Ended } else { Step::Waits });
        }
        let mut block = std::mem::take(&mut self.block);
        block.resize(BLOCK, 0);
        let (from, _) = self.fds();
        let count = unless_it_would_block(rustix::io::read(from, &mut block))?;
        block.truncate(count.unwrap_or(0));
        self.block = block;
        self.written = 0;
        Ok(match count {
            None => Step::Waits,
            Some(0) => Step::Ended,
            Some(_) => Step::Moved,
        })
    }

    fn empty(&mut self) -> io::Result<Step> {
        let (_, to) = self.fds();
        if !is_ready(to, PollFlags::OUT)? {
            return Ok(Step::Waits);
        }
        let rest = &self.block[self.written..];
        let count = match rustix::io::write(to, rest) {
            Err(Errno::IO)
                if matches!(
                    &self.ends,
                    Ends::Output {
                        to: Sink::Own(_),
                        ..
                    }
                ) =>
            {
                Some(rest.len())
            }
            result => unless_it_would_block(result)?,
        };
        let Some(count) = count else {
            return Ok(Step::Waits);
        };
        self.written += count;
        if self.written == self.block.len() {
            self.block.clear();
        }
        Ok(Step::Moved)
    }

    fn end(&mut self) -> bool {
        if let Ends::Input { to, .. } = &self.ends {
            // The container sees the end of its input; it may be gone already.
            let _ = to.shutdown(Shutdown::Write);
        }
        false
    }
}

enum Step {
    Moved,
    Waits,
    Ended,
}

fn is_ready(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<bool> {
    Ok(!now(fd, flags)?.is_empty())
}

fn is_hung_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(now(fd, PollFlags::empty())?.intersects(PollFlags::HUP | PollFlags::ERR))
}

fn now(fd: BorrowedFd<'_>, flags: PollFlags) -> io::Result<PollFlags> {
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    let at_once = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match rustix::event::poll(&mut fds, Some(&at_once)) {
        Ok(_) => Ok(fds[0].revents()),
        Err(Errno::INTR) => Ok(PollFlags::empty()),
        Err(error) => Err(error.into()),
    }
}

/// Opens the null device, for streams that nobody has.
#[cfg(test)]
fn null() -> OwnedFd {
    std::fs::File::open("/dev/null").unwrap().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    fn pair() -> (UnixStream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        (ours, theirs)
    }

    #[test]
    fn output_waits_for_its_reader_and_loses_nothing() {
        let (socket, mut container) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        let sink = Sink::inherited(writer.as_fd()).unwrap();
        drop(writer);
        let sent: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        let copy = sent.clone();
        let sender = std::thread::spawn(move || container.write_all(&copy).unwrap());
        let receiver = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        });
        let mut pump = Pump::out_of(socket, sink);
        while pump.turn() {
            let mut fds: Vec<_> = pump.interests().collect();
            rustix::event::poll(&mut fds, None).unwrap();
        }
        drop(pump);
        sender.join().unwrap();
        assert!(receiver.join().unwrap() == sent);
    }

    #[test]
    fn a_full_pipe_holds_nobody_up() {
        let (socket, mut container) = pair();
        let (_reader, writer) = io::pipe().unwrap();
        let mut pump = Pump::out_of(socket, Sink::inherited(writer.as_fd()).unwrap());
        let sender = std::thread::spawn(move || {
            let _ = container.write_all(&vec![0; 1 << 20]);
        });
        // Returns, though the pipe takes 64 KiB and nobody reads.
        for _ in 0..100 {
            assert!(pump.turn());
        }
        drop(pump);
        sender.join().unwrap();
    }

    #[test]
    fn the_end_of_input_is_passed_on() {
        let (socket, mut container) = pair();
        let mut pump = Pump::into(null(), socket);
        assert!(!pump.turn());
        let mut rest = Vec::new();
        assert_eq!(container.read_to_end(&mut rest).unwrap(), 0);
    }

    #[test]
    fn a_container_that_left_ends_its_input() {
        let (socket, container) = pair();
        let (reader, _writer) = io::pipe().unwrap();
        let mut pump = Pump::into(reader.into(), socket);
        assert!(pump.turn());
        drop(container);
        assert!(!pump.turn());
    }
}
