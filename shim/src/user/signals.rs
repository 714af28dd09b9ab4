//! The signals that a user may send us, in the order in which they came.

use std::{fs, io};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// The container's init process is to have this signal.
    Forward(u32),
    /// The terminal has another size.
    Resize,
}

/// The stream of signals, from its making on: before, they do what they always do. What our parent made us ignore stays
/// ignored: `nohup` does so with SIGHUP, and shells without job control with SIGINT and SIGQUIT in the background.
#[derive(Debug)]
pub struct Signals(mpsc::UnboundedReceiver<Wish>);

impl Signals {
    /// Starts to listen.
    ///
    /// # Errors
    /// As sigaction(2) says.
    pub fn listen() -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let forwarded = [
            SignalKind::interrupt(),
            SignalKind::terminate(),
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        let ignored = ignored_signals(&fs::read_to_string("/proc/self/status")?);
        for kind in forwarded {
            let number = kind.as_raw_value().cast_unsigned();
            if has(ignored, number) {
                continue;
            }
            pass_on(signal(kind)?, Wish::Forward(number), sender.clone());
        }
        pass_on(signal(SignalKind::window_change())?, Wish::Resize, sender);
        Ok(Self(receiver))
    }

    /// The next one.
    pub async fn next(&mut self) -> Wish {
        match self.0.recv().await {
            Some(wish) => wish,
            None => std::future::pending().await,
        }
    }
}

/// The mask `SigIgn` of /proc/<pid>/status (proc_pid_status(5)): bit n - 1 stands for signal n.
fn ignored_signals(status: &str) -> u64 {
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

fn has(mask: u64, signal: u32) -> bool {
    mask >> (signal - 1) & 1 == 1
}

fn pass_on(mut source: Signal, wish: Wish, sender: mpsc::UnboundedSender<Wish>) {
    tokio::spawn(
        async move { while source.recv().await.is_some() && sender.send(wish).is_ok() {} },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read_from_the_kernels_mask() {
        let status = "Name:\tx\nSigBlk:\t0000000000000001\nSigIgn:\t0000000000001005\nSigCgt:\t0\n";
        let ignored = ignored_signals(status);
        let of = |signal: i32| has(ignored, signal.cast_unsigned());
        assert!(of(libc::SIGHUP) && of(libc::SIGQUIT) && of(libc::SIGPIPE));
        assert!(!of(libc::SIGINT) && !of(libc::SIGTERM));
    }
}
