//! In the foreground: waits for a keeper that is our child, passes our signals on to it, and has its exit code.

use std::process::{Child, ExitStatus};

use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};

use super::error::OciError;
use crate::user::signals::{Signals, Wish};

/// Waits for the end of a process; its exit code.
///
/// # Errors
/// The host does not let us.
pub fn wait(mut child: Child) -> Result<u8, OciError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OciError::host("start the event loop"))?;
    let status = runtime.block_on(async {
        let mut ended = signal(SignalKind::child())?;
        let mut signals = Signals::listen()?;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            tokio::select! {
                _ = ended.recv() => {}
                wish = signals.next() => pass_on(&child, wish),
            }
        }
    });
    status.map(code_of).map_err(OciError::host("wait"))
}

fn pass_on(child: &Child, wish: Wish) {
    let number = match wish {
        Wish::Forward(number) => number.cast_signed(),
        Wish::Resize => libc::SIGWINCH,
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // Not reaped yet, so the id is its own; that it has just ended is what we hear next.
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(number)) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// As runc's: a signal is 128 and its number.
fn code_of(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(255);
    u8::try_from(code).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn codes_are_passed_on() {
        let shell = |script: &str| Command::new("sh").args(["-c", script]).spawn().unwrap();
        assert_eq!(wait(shell("exit 7")).unwrap(), 7);
        assert_eq!(wait(shell("kill -9 $$")).unwrap(), 137);
    }
}
