//! A person at a terminal: a command that has one of its own, what it prints there, and what is typed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};

use crate::kit::PATIENCE;

nix::ioctl_write_ptr_bad!(set_size, nix::libc::TIOCSWINSZ, Winsize);

pub struct Terminal {
    master: File,
    child: Child,
    /// Printed, and not looked at yet.
    seen: String,
}

impl Terminal {
    /// Starts a command that has a terminal of this size, and is told of its changes, as a shell's job would be.
    pub fn of(command: &Command, rows: u16, columns: u16) -> Self {
        let pty = openpty(Some(&winsize(rows, columns)), None).unwrap();
        let mut session = Command::new("setsid");
        session.arg("--ctty").arg(command.get_program());
        session.args(command.get_args());
        session.envs(
            command
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        session
            .stdin(pty.slave.try_clone().unwrap())
            .stdout(pty.slave.try_clone().unwrap())
            .stderr(pty.slave);
        Self {
            child: session.spawn().unwrap(),
            master: File::from(pty.master),
            seen: String::new(),
        }
    }

    /// Waits until these words are printed; what comes after them is for the next call.
    #[track_caller]
    pub fn shows(&mut self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(at) = self.seen.find(words) {
                self.seen.drain(..at + words.len());
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap();
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut fds, timeout).unwrap();
            assert!(ready > 0, "no {words:?} in time in {:?}", self.seen);
            let mut block = [0; 1024];
            match self.master.read(&mut block) {
                Ok(count @ 1..) => self
                    .seen
                    .push_str(&String::from_utf8_lossy(&block[..count])),
                _ => panic!("no {words:?} up to the end in {:?}", self.seen),
            }
        }
    }

    pub fn types(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).unwrap();
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        // SAFETY: the descriptor is an open terminal, and the size lives across the call.
        unsafe { set_size(self.master.as_raw_fd(), &winsize(rows, columns)) }.unwrap();
    }

    /// Reads to the end of the terminal, then has the exit code.
    pub fn exit_code(mut self) -> Option<i32> {
        // The last of those who have it open closes it; then Linux says EIO.
        let _ = self.master.read_to_end(&mut Vec::new());
        self.child.wait().unwrap().code()
    }
}

/// For [`is_the_containers`]: says when it has a terminal of its first size, and of its next; goes when it is interrupted.
pub const SCRIPT: &str = "trap 'echo changed to $(stty size)' WINCH; trap 'exit 5' INT
    until stty size | grep '^33 111'; do sleep 0.2; done; while :; do sleep 0.2; done";

/// An engine's container that runs [`SCRIPT`] in the foreground has a terminal; then a shell that `exec` starts beside it.
#[track_caller]
pub fn is_the_containers(run: &Command, exec: &Command) {
    let mut first = Terminal::of(run, 33, 111);
    first.shows("33 111");
    let mut second = Terminal::of(exec, 20, 80);
    second.types("test -t 0 && test -t 2 && echo here are $((6 * 7))\r");
    second.shows("here are 42");
    second.types("exit 7\r");
    assert_eq!(second.exit_code(), Some(7));
    first.resize(44, 111);
    first.shows("changed to 44 111");
    first.types("\x03");
    assert_eq!(first.exit_code(), Some(5));
}

fn winsize(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
