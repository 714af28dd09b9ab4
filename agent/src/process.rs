//! One process of a container: its signals, its terminal, its end.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// A process that was started, or a sandbox's that nothing has needed so far.
#[derive(Debug)]
pub struct Process {
    body: Mutex<Body>,
    terminal: Mutex<Option<OwnedFd>>,
    /// Set when the process has exited and its output streams have ended.
    finished: watch::Sender<Option<Exit>>,
}

/// What there is of a process.
#[derive(Debug)]
enum Body {
    Made {
        /// In the guest's root PID namespace.
        pid: u32,
        /// None once it was gone before it could be held: a pid alone could by now be somebody else's.
        pidfd: Option<OwnedFd>,
    },
    /// None yet. The end that a signal brings is told here, once.
    Resting(Option<oneshot::Sender<ExitStatus>>),
}

impl Body {
    fn of(pid: u32) -> Self {
        // SAFETY: pidfd_open takes two integers and gives a new descriptor.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).ok();
        // SAFETY: made in the line above, owned by nobody else.
        let pidfd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
        Self::Made { pid, pidfd }
    }
}

impl Process {
    /// Takes hold of a process, which must not have been waited for by anyone but the reaper.
    pub fn new(pid: u32, terminal: Option<OwnedFd>) -> Self {
        Self::with(Body::of(pid), terminal)
    }

    /// A sandbox's that is made when it is needed. Its exit comes from a signal, or from the process once there is one.
    pub fn resting() -> (Self, oneshot::Receiver<ExitStatus>) {
        let (end, exit) = oneshot::channel();
        (Self::with(Body::Resting(Some(end)), None), exit)
    }

    fn with(body: Body, terminal: Option<OwnedFd>) -> Self {
        Self {
            body: Mutex::new(body),
            terminal: Mutex::new(terminal),
            finished: watch::Sender::new(None),
        }
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the guest's root PID namespace; 0 for one that rests.
    pub fn pid(&self) -> u32 {
        match &*self.body() {
            Body::Made { pid, .. } => *pid,
            Body::Resting(_) => 0,
        }
    }

    /// One that rests is this process from now on. False if it has ended meanwhile.
    pub fn wake(&self, pid: u32, exit: oneshot::Receiver<ExitStatus>) -> bool {
        let mut body = self.body();
        let end = match &mut *body {
            Body::Made { .. } => None,
            Body::Resting(end) => end.take(),
        };
        let Some(end) = end else { return false };
        *body = Body::of(pid);
        tokio::spawn(async move {
            // The reaper lives as long as the agent does, and who follows the process too.
            let _ = end.send(exit.await.unwrap_or(255));
        });
        true
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
                self.pid()
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
        let mut body = self.body();
        let pidfd = match &mut *body {
            Body::Made { pidfd, .. } => pidfd.as_ref().ok_or(Errno::ESRCH)?,
            Body::Resting(end) => return end_by(number, end),
        };
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

/// As Kubernetes' pause, the first process of its PID namespace, answers signals: it exits at SIGTERM and SIGINT, and ignores
/// what it does not handle.
fn end_by(signal: i32, end: &mut Option<oneshot::Sender<ExitStatus>>) -> Result<(), Errno> {
    if end.is_none() {
        return Err(Errno::ESRCH);
    }
    let status = match signal {
        libc::SIGKILL => 128 + libc::SIGKILL as u32,
        libc::SIGTERM | libc::SIGINT => 0,
        _ => return Ok(()),
    };
    // Who follows it takes the news.
    let _ = end.take().map(|end| end.send(status));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_rests_ends_as_pause_would() {
        for (signal, status) in [(libc::SIGTERM, 0), (libc::SIGINT, 0), (libc::SIGKILL, 137)] {
            let (process, mut exit) = Process::resting();
            assert_eq!(process.signal(libc::SIGHUP as u32), Ok(()));
            assert!(exit.try_recv().is_err());
            assert_eq!(process.signal(signal as u32), Ok(()));
            assert_eq!(exit.try_recv(), Ok(status));
            assert_eq!(process.signal(signal as u32), Err(Errno::ESRCH));
            assert!(!process.wake(1, oneshot::channel().1));
        }
    }

    #[tokio::test]
    async fn one_that_was_made_later_has_its_own_end() {
        let (process, exit) = Process::resting();
        let (told, made) = oneshot::channel();
        assert_eq!(process.pid(), 0);
        assert!(process.wake(std::process::id(), made));
        assert_eq!(process.pid(), std::process::id());
        told.send(5).unwrap();
        assert_eq!(exit.await, Ok(5));
    }

    #[test]
    fn a_process_that_is_gone_gets_no_signal() {
        let body = Body::Made {
            pid: u32::MAX >> 1,
            pidfd: None,
        };
        let process = Process::with(body, None);
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
