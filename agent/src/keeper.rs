//! A process' keeper: the host process that stands for it, signals it, learns its end, and takes it along when it dies.

use std::future::pending;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use vmbox_protocol::keeper::{Ended, MAX_MESSAGE, Wish};

use crate::process::{Exit, Process};

/// The connection to a keeper; a process without one has a silent one.
pub struct Keeper<S>(pub Option<S>);

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Keeper<S> {
    /// Does what the keeper wants, kills the process when it is gone, and never answers.
    pub async fn serve(&mut self, process: &Process) {
        if let Some(stream) = &mut self.0 {
            obey(stream, process).await;
            // Its PID namespace goes with it. One that has ended already needs no signal.
            let _ = process.signal(libc::SIGKILL as u32);
        }
        pending().await
    }

    /// Reports the end, after that of the output streams.
    pub async fn say(self, exit: Exit) {
        let Some(mut stream) = self.0 else { return };
        let ended = Ended {
            status: exit.status,
            oom_killed: exit.oom_killed,
        };
        // A keeper that is gone needs no news.
        let _ = stream.write_all(ended.to_string().as_bytes()).await;
        let _ = stream.shutdown().await;
        // As with the output streams, a close of ours could overtake it.
        tokio::spawn(async move {
            let mut rest = [0; 16];
            while let Ok(1..) = stream.read(&mut rest).await {}
        });
    }
}

async fn obey(stream: &mut (impl AsyncRead + Unpin), process: &Process) {
    let mut lines = BufReader::with_capacity(MAX_MESSAGE, stream);
    loop {
        let mut line = String::new();
        let mut limited = (&mut lines).take(MAX_MESSAGE as u64);
        match (limited.read_line(&mut line).await, line.parse()) {
            // That it has just ended is what the keeper will hear next.
            (Ok(1..), Ok(Wish::Signal(signal))) => drop(process.signal(signal)),
            (Ok(1..), Ok(Wish::Resize { columns, rows })) => drop(process.resize(columns, rows)),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use tokio::net::UnixStream;

    fn sleeper() -> (tokio::process::Child, Process) {
        let child = tokio::process::Command::new("sleep")
            .arg("1000")
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let process = Process::new(child.id().unwrap(), None);
        (child, process)
    }

    async fn signal_of(
        keeper: UnixStream,
        mut child: tokio::process::Child,
        process: &Process,
    ) -> i32 {
        let mut keeper = Keeper(Some(keeper));
        tokio::select! {
            () = keeper.serve(process) => unreachable!(),
            status = child.wait() => status.unwrap().signal().unwrap(),
        }
    }

    #[tokio::test]
    async fn a_process_gets_its_keepers_signals() {
        let (child, process) = sleeper();
        let (agent, mut host) = UnixStream::pair().unwrap();
        host.write_all(b"resize 80 24\nsignal 15\n").await.unwrap();
        assert_eq!(signal_of(agent, child, &process).await, libc::SIGTERM);
    }

    #[tokio::test]
    async fn a_process_dies_with_its_keeper() {
        let (child, process) = sleeper();
        let (agent, host) = UnixStream::pair().unwrap();
        drop(host);
        assert_eq!(signal_of(agent, child, &process).await, libc::SIGKILL);
    }

    #[tokio::test]
    async fn the_end_is_reported() {
        let (agent, mut host) = UnixStream::pair().unwrap();
        let exit = Exit {
            status: 3,
            oom_killed: false,
        };
        Keeper(Some(agent)).say(exit).await;
        let mut said = String::new();
        host.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "exit 3 0\n");
    }
}
