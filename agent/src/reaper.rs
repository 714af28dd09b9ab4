//! The only place that waits for children: every exit in the machine is collected here and handed to whoever asked for it.
//!
//! A process may be over before anyone could ask for it: between its start in the executor and the executor's report. So while
//! a start is under way exits of unknown pids are kept; when none is, they are orphans' exits and are dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Exit code, or 128 + the signal that ended the process.
pub type ExitStatus = u32;

#[derive(Debug, Default)]
struct Table {
    awaited: HashMap<u32, oneshot::Sender<ExitStatus>>,
    kept: HashMap<u32, ExitStatus>,
    starts: usize,
}

/// A handle on the reaper; clones are the same reaper.
#[derive(Debug, Clone, Default)]
pub struct Reaper {
    table: Arc<Mutex<Table>>,
}

/// While this lives, no exit is dropped.
#[derive(Debug)]
pub struct Start {
    reaper: Reaper,
}

impl Reaper {
    /// Opens the window in which a process is started. Keep it until [`Start::expect`] was called.
    pub fn start(&self) -> Start {
        self.table().starts += 1;
        Start {
            reaper: self.clone(),
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, pid: u32, status: ExitStatus) {
        let mut table = self.table();
        if let Some(waiter) = table.awaited.remove(&pid) {
            // The one who asked may have gone.
            let _ = waiter.send(status);
        } else if table.starts > 0 {
            table.kept.insert(pid, status);
        }
    }

    /// Collects every child that has ended, until there is none left that has.
    ///
    /// Not nix's waitpid: it answers EINVAL for a child that a real-time signal ended, after having collected it.
    fn collect(&self) {
        loop {
            let mut raw = 0;
            // SAFETY: `raw` is a valid place for the status, and -1 means any child.
            let pid = unsafe { libc::waitpid(-1, &raw mut raw, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            if libc::WIFEXITED(raw) {
                self.record(pid as u32, libc::WEXITSTATUS(raw) as u32);
            } else if libc::WIFSIGNALED(raw) {
                self.record(pid as u32, 128 + libc::WTERMSIG(raw) as u32);
            }
        }
    }

    /// Collects for ever.
    ///
    /// # Errors
    /// SIGCHLD can't be listened to.
    pub async fn run(self) -> std::io::Result<()> {
        let mut ended = signal(SignalKind::child())?;
        loop {
            self.collect();
            // Signals merge, so each one stands for any number of ends; one that comes now is not lost.
            ended.recv().await;
        }
    }
}

impl Start {
    /// The exit of a process that was started in this window, whether it lies ahead or behind.
    pub fn expect(&self, pid: u32) -> oneshot::Receiver<ExitStatus> {
        let (sender, receiver) = oneshot::channel();
        let mut table = self.reaper.table();
        match table.kept.remove(&pid) {
            Some(status) => {
                let _ = sender.send(status);
            }
            None => {
                table.awaited.insert(pid, sender);
            }
        }
        receiver
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        let mut table = self.reaper.table();
        table.starts -= 1;
        if table.starts == 0 {
            table.kept.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_before_anyone_asked_is_kept_during_a_start() {
        let reaper = Reaper::default();
        let start = reaper.start();
        reaper.record(42, 7);
        assert_eq!(start.expect(42).try_recv(), Ok(7));
    }

    #[test]
    fn exit_after_the_question_arrives() {
        let reaper = Reaper::default();
        let mut exit = reaper.start().expect(42);
        assert!(exit.try_recv().is_err());
        reaper.record(42, 137);
        assert_eq!(exit.try_recv(), Ok(137));
    }

    #[test]
    fn orphans_exits_leave_nothing_behind() {
        let reaper = Reaper::default();
        reaper.record(1000, 0);
        let first = reaper.start();
        reaper.record(1001, 0);
        let second = reaper.start();
        drop(first);
        reaper.record(1002, 0);
        drop(second);
        assert!(reaper.table().kept.is_empty());
        assert!(reaper.start().expect(1001).try_recv().is_err());
    }

    #[test]
    #[allow(
        clippy::zombie_processes,
        reason = "that somebody else waits is what is tested"
    )]
    fn a_real_child_is_collected() {
        let reaper = Reaper::default();
        let start = reaper.start();
        let child = std::process::Command::new("/bin/sh")
            .args(["-c", "exit 3"])
            .spawn()
            .unwrap();
        let mut exit = start.expect(child.id());
        // The test's own wait is waitid with WNOWAIT, so that the child is still there to be collected.
        nix::sys::wait::waitid(
            nix::sys::wait::Id::Pid(nix::unistd::Pid::from_raw(child.id() as i32)),
            nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT,
        )
        .unwrap();
        reaper.collect();
        assert_eq!(exit.try_recv(), Ok(3));
    }
}
