//! The warden: a second process that cleans up after `vmbox run`, also when `vmbox` is killed.

use std::{
    fs::File,
    io::{self, BufRead, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
};

use rustix::fs::FlockOperation;

use super::{complain, one_line};
use crate::{journal, pod::place::PodDir, stdio};

/// The directory is ours: clean it up when the pipe ends.
const MINE: u8 = b'm';
/// We are done: clean up now.
const DONE: u8 = b'd';

/// Our end of a running warden.
#[derive(Debug)]
pub struct Warden {
    child: Child,
    pipe: ChildStdin,
}

impl Warden {
    /// Starts it, before anything else is made and in the host's mount namespace. With `terminal`, it remembers the
    /// settings of our standard input.
    ///
    /// # Errors
    /// This program can't be executed again.
    pub fn start(dir: &PodDir, terminal: bool) -> io::Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("warden").arg(dir.path());
        if terminal {
            command
                .arg("--terminal")
                .arg(format!("/proc/{}/fd/0", std::process::id()));
        }
        // A group of its own: Ctrl-C is not for it.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipe = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        if let (true, Some(mut ready)) = (terminal, child.stdout.take()) {
            // It has seen the terminal as it was before we change it.
            let _ = ready.read(&mut [0]);
        }
        Ok(Self { child, pipe })
    }

    /// The pod's directory has been made, by us.
    ///
    /// # Errors
    /// The warden is gone.
    pub fn owns(&mut self) -> io::Result<()> {
        self.pipe.write_all(&[MINE])
    }

    /// Has everything cleaned up, and waits for that. Nothing happens if the directory was never ours.
    pub fn finish(mut self) {
        let told = self.pipe.write_all(&[DONE]);
        drop(self.pipe);
        let cleaned = self.child.wait().is_ok_and(|status| status.success());
        if told.is_err() || !cleaned {
            complain("not everything could be cleaned up: `vmbox gc` tries again");
        }
    }
}

/// The hidden verb.
pub fn watch(dir: &Path, terminal: Option<&Path>) -> u8 {
    ignore_signals();
    let saved = terminal.and_then(|path| stdio::save(path).ok());
    // One byte: we are ready. Then nothing holds the user's standard output.
    let _ = io::stdout()
        .write_all(b"r")
        .and_then(|()| io::stdout().flush());
    let told = listen(io::stdin().lock(), dir);
    if let (false, Some(saved)) = (told.done, &saved) {
        stdio::restore_on_loss(saved);
    }
    let Some(lock) = told.mine else {
        return 0;
    };
    let dir = PodDir::at(dir.to_owned());
    // The pipe of a killed process may close before its lock is free. From here on no `gc` and no new pod comes between.
    let _ = rustix::fs::flock(&lock, FlockOperation::LockExclusive);
    if !journal::is_at(&lock, &dir) {
        // `gc` was faster, and what is there now is another pod's.
        return 0;
    }
    match journal::undo(&dir) {
        Ok(()) => 0,
        Err(error) => {
            complain(&one_line(&error));
            1
        }
    }
}

/// What our owner said before it ended.
struct Told {
    /// The pod's directory, opened when it was said to be ours.
    mine: Option<File>,
    /// Our owner ends in order.
    done: bool,
}

fn listen(pipe: impl BufRead, dir: &Path) -> Told {
    let mut told = Told {
        mine: None,
        done: false,
    };
    // An error is an end.
    for byte in pipe.bytes().map_while(Result::ok) {
        match byte {
            MINE => told.mine = File::open(dir).ok(),
            DONE => told.done = true,
            _ => {}
        }
    }
    told
}

/// Only the end of the pipe ends a warden: whoever ends a whole session or service still wants it cleaned up. And a
/// background process that sets a terminal is stopped, unless it ignores SIGTTOU.
fn ignore_signals() {
    for signal in [
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGTTOU,
    ] {
        // SAFETY: SIG_IGN is a valid disposition, and no other thread exists that could rely on another.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_only_ours_if_it_was_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let silent = listen(&b""[..], dir.path());
        assert!(silent.mine.is_none() && !silent.done);
        let orderly = listen(&b"md"[..], dir.path());
        assert!(orderly.mine.is_some() && orderly.done);
    }
}
