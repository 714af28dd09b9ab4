//! The executor's own side: takes one request from its stdin, does it, reports, ends.

use std::fs;
use std::os::fd::{FromRawFd, OwnedFd};

use super::channel::Channel;
use super::{Failure, Report, Request, create, exec};

/// The executor's main function; its answer is the exit status, which nobody reads.
pub fn main() -> i32 {
    let channel = match take_channel() {
        Ok(channel) => channel,
        Err(error) => {
            crate::log::error(&format!("vmbox-agent executor: {error}"));
            return 1;
        }
    };
    let failure = match serve(&channel) {
        Ok(()) => return 0,
        Err(failure) => failure,
    };
    // The agent may be gone; then so is everything.
    let _ = channel.send(&Report::Failed(failure), &[]);
    1
}

fn serve(channel: &Channel) -> Result<(), Failure> {
    // Ours is -1000, and children inherit it.
    fs::write("/proc/self/oom_score_adj", "0")
        .map_err(|e| Failure::of("reset oom_score_adj", e))?;
    let received = channel
        .receive_any::<Request>()
        .map_err(|e| Failure::of("executor", e))?;
    let Some((request, stdio)) = received else {
        return Err(Failure::other("the executor got no request"));
    };
    match request {
        Request::Create { .. } => create::create(channel, &request, stdio),
        Request::Exec { .. } => exec::exec(channel, &request, stdio),
    }
}

/// The channel is stdin; it moves away, and stdin becomes /dev/null.
fn take_channel() -> std::io::Result<Channel> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number and makes a new descriptor of at least 3.
    let moved = nix::errno::Errno::result(unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: `moved` was made in the line above and is owned by nobody else.
    let channel = Channel::from_fd(unsafe { OwnedFd::from_raw_fd(moved) });
    let null = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(channel)
}
