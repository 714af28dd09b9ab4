//! The agent's log: whole lines on stderr, which PID 1 points at the kernel's log, where the host reads them after a death.

use std::io::Write;

/// Something asked for did not happen.
pub fn error(line: &str) {
    write("<3>", line);
}

/// Odd, but handled.
pub fn warn(line: &str) {
    write("<4>", line);
}

/// One write per line: each write to /dev/kmsg is a record of its own.
fn write(priority: &str, line: &str) {
    let prefix = if std::process::id() == 1 {
        priority
    } else {
        ""
    };
    let record = format!("{prefix}{line}\n");
    // Nothing can be done when the log itself is gone.
    let _ = std::io::stderr().write_all(record.as_bytes());
}

/// Makes a panic of any thread the end of the guest: the host learns of it at once instead of waiting for an answer.
pub fn end_the_machine_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        error(&format!("vmbox-agent: {panic}"));
        // SAFETY: _exit has no precondition; abort() would not do, as PID 1 is immune to its own SIGABRT.
        unsafe { libc::_exit(134) };
    }));
}
