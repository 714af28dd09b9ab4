//! One process of a container: its signals, its terminal, its end.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use tokio::sync::{oneshot, watch};

use crate::keeper::Keeper;
use crate::reaper::ExitStatus;
use crate::stdio::{self, Streams};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + the signal that ended it.
    pub status: ExitStatus,
    /// Its container lost a process to an out-of-memory kill while it ran.
    pub oom_killed: bool,
}

/// A process that was started.
#[derive(Debug)]
pub struct Process {
    /// In the guest's root PID namespace.
    pub pid: u32,
    /// None once it was gone before it could be held: a pid alone could by now be somebody else's.
    pidfd: Option<OwnedFd>,
    terminal: Mutex<Option<OwnedFd>>,
    /// Set when the process has exited and its output streams have ended.
    finished: watch::Sender<Option<Exit>>,
}

impl Process {
    /// Takes hold of a process, which must not have been waited for by anyone but the reaper.
    pub fn new(pid: u32, terminal: Option<OwnedFd>) -> Self {
        // SAFETY: pidfd_open takes two integers and gives a new descriptor.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).ok();
        // SAFETY: made in the line above, owned by nobody else.
        let pidfd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        Self {
            pid,
            pidfd,
            terminal: Mutex::new(terminal),
            finished: watch::Sender::new(None),
        }
    }

    /// Moves its streams and follows it to its end: `on_exit` is called between its exit and the end of its streams.
    ///
    /// # Errors
    /// The streams can't be polled.
    pub async fn follow(
        &self,
        mut streams: Streams,
        exit: oneshot::Receiver<ExitStatus>,
        on_exit: impl FnOnce() -> bool,
    ) {
        let mut keeper = Keeper(streams.keeper.take());
        tokio::select! {
            () = self.follow_alone(streams, exit, on_exit) => {}
            () = keeper.serve(self) => {}
        }
        let exit = *self.finished.borrow();
        if let Some(exit) = exit {
            keeper.say(exit).await;
        }
    }

    async fn follow_alone(
        &self,
        streams: Streams,
        exit: oneshot::Receiver<ExitStatus>,
        on_exit: impl FnOnce() -> bool,
    ) {
        let (exited, watcher) = watch::channel(false);
        let pumps = {
            let terminal = self.terminal.lock().unwrap_or_else(PoisonError::into_inner);
            streams.pump(terminal.as_ref(), watcher)
        };
        let mut pumps = pumps.unwrap_or_else(|error| {
            crate::log::error(&format!(
                "vmbox-agent: stdio of process {}: {error}",
                self.pid
            ));
            tokio::task::JoinSet::new()
        });
        // The reaper lives as long as the agent does.
        let status = exit.await.unwrap_or(255);
        let oom_killed = on_exit();
        let _ = exited.send(true);
        while pumps.join_next().await.is_some() {}
        self.terminal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.finished
            .send_replace(Some(Exit { status, oom_killed }));
    }

    /// Its exit, after the end of its output.
    pub async fn wait(&self) -> Exit {
        let mut finished = self.finished.subscribe();
        match finished.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            // Neither can be: the sender is ours, and the condition was Some.
            Ok(None) | Err(_) => Exit {
                status: 255,
                oom_killed: false,
            },
        }
    }

    /// Whether [`Self::wait`] would answer at once.
    pub fn is_finished(&self) -> bool {
        self.finished.borrow().is_some()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// ESRCH when it has ended, EINVAL when there is no such signal.
    pub fn signal(&self, signal: u32) -> Result<(), Errno> {
        let number = i32::try_from(signal)
            .ok()
            .filter(|n| (0..=64).contains(n))
            .ok_or(Errno::EINVAL)?;
        let pidfd = self.pidfd.as_ref().ok_or(Errno::ESRCH)?;
        // SAFETY: a descriptor, a number, no siginfo, no flags.
        Errno::result(unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                pidfd.as_raw_fd(),
                number,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        })?;
        Ok(())
    }

    /// Sets its terminal's size; false without one.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn resize(&self, columns: u32, rows: u32) -> std::io::Result<bool> {
        match self
            .terminal
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
        {
            Some(terminal) => stdio::resize(terminal, columns, rows).map(|()| true),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_gets_no_signal() {
        let process = Process {
            pidfd: None,
            ..Process::new(u32::MAX >> 1, None)
        };
        assert_eq!(process.signal(9), Err(Errno::ESRCH));
        assert_eq!(process.signal(99), Err(Errno::EINVAL));
    }

    #[tokio::test]
    async fn wait_answers_everyone_and_ever_again() {
        let process = std::sync::Arc::new(Process::new(std::process::id(), None));
        let early = tokio::spawn({
            let process = process.clone();
            async move { process.wait().await }
        });
        let (exit, exited) = oneshot::channel();
        exit.send(3).unwrap();
        let (streams, _) = Streams::open(
            &crate::host::Dialer::Vsock,
            Default::default(),
            false,
            crate::spec::Owner { uid: 0, gid: 0 },
        )
        .await
        .unwrap();
        process.follow(streams, exited, || true).await;
        let expected = Exit {
            status: 3,
            oom_killed: true,
        };
        assert_eq!(
            (early.await.unwrap(), process.wait().await),
            (expected, expected)
        );
    }
}
