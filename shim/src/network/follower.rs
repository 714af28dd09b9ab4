//! The process that keeps the network of an engine's pod in line while the engine's commands come and go, and answers for
//! Docker's resolver.
//!
//! ```text
//! create ── starts ──► follower: namespace ── go ──► journal, agent ── waits for changes of the namespace, and for the
//!                                                                      monitor's end
//! create, start ── connect ──► carries what is there now ──► one line: `ok`, or why not
//! ```
//! So what an engine attaches between `create` and `start` is there when the container's program begins.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, Interest, unix::AsyncFd},
    net::{UnixListener, UnixStream},
};

use super::{Ends, NetworkError, PodNetwork, Step as _};
use crate::{
    guest::{self, Agent},
    journal::{self, Journal},
    pod::place::PodDir,
    user::one_line,
};

/// The hidden verb.
pub const VERB: &str = "network";
const GO: &[u8] = b"\n";
const OK: &str = "ok";
/// A guest whose agent is slow is waited for; the follower's own call to it ends first, and says what is wrong.
const PATIENCE: Duration = guest::CALL.saturating_add(Duration::from_secs(30));

/// A follower that has been started, in the mount namespace of whoever did so, and waits for the word to go: what it takes
/// to start passes beside the guest's boot. Dropped before that, it ends.
#[derive(Debug)]
pub struct Follower(Child);

impl Follower {
    /// Starts the one of a pod. `resolv_conf` is the file that becomes the container's.
    ///
    /// # Errors
    /// This program can't be executed again.
    pub fn start(
        dir: &PodDir,
        namespace: &Path,
        resolv_conf: Option<&Path>,
    ) -> Result<Self, NetworkError> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(VERB).arg(dir.path()).arg(namespace);
        command.args(resolv_conf);
        let child = command
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        child.step(start_step).map(Self)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Tells it that the agent can be dialed, and leaves it to itself as soon as it listens.
    ///
    /// # Errors
    /// It has ended, and said why.
    pub fn release(mut self) -> Result<(), NetworkError> {
        if let Some(mut stdin) = self.0.stdin.take() {
            // One that has ended does not read it, but has said why.
            let _ = stdin.write_all(GO);
        }
        let mut said = String::new();
        if let Some(stdout) = self.0.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut said)
                .step(start_step)?;
        }
        understood(&said).step(start_step)
    }
}

fn start_step() -> String {
    "start the pod's network follower".into()
}

fn understood(said: &str) -> io::Result<()> {
    match said.trim() {
        OK => Ok(()),
        "" => Err(io::ErrorKind::UnexpectedEof.into()),
        why => Err(io::Error::other(why.to_owned())),
    }
}

/// Waits until everything is carried that is in the pod's namespace now. Nothing is to be done for a pod without a network.
///
/// # Errors
/// Something can't be carried, or the follower is gone.
pub fn settle(dir: &PodDir) -> Result<(), NetworkError> {
    let step = || "carry the pod's interfaces into the VM".to_owned();
    let mut stream = match std::os::unix::net::UnixStream::connect(dir.network()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        connected => connected.step(step)?,
    };
    stream.set_read_timeout(Some(PATIENCE)).step(step)?;
    let mut said = String::new();
    stream.read_to_string(&mut said).step(step)?;
    understood(&said).step(step)
}

/// The verb: `vmbox network DIR NAMESPACE [RESOLV_CONF]`, until the pod's monitor ends.
pub fn main(words: impl Iterator<Item = String>) -> u8 {
    let words: Vec<PathBuf> = words.map(PathBuf::from).collect();
    let [dir, namespace, rest @ ..] = words.as_slice() else {
        return 2;
    };
    let dir = PodDir::at(dir.clone());
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .step(|| "start the event loop".into())
        .and_then(|runtime| runtime.block_on(serve(&dir, namespace, rest.first())));
    match ended {
        Ok(()) => 0,
        Err(error) => {
            // Whoever started us reads it, if this was the beginning.
            say(&one_line(&error));
            1
        }
    }
}

async fn serve(
    dir: &PodDir,
    namespace: &Path,
    resolv_conf: Option<&PathBuf>,
) -> Result<(), NetworkError> {
    let mut network = PodNetwork::open(namespace)?;
    network.set_resolv_conf(resolv_conf.cloned());
    // Nothing else runs in this process yet.
    if io::stdin().read_exact(&mut [0; GO.len()]).is_err() {
        // Whoever started us has given up.
        return Ok(());
    }
    network.take_up(&journal::read(dir).map_err(NetworkError::Journal)?);
    let journal = Journal::append(dir).map_err(NetworkError::Journal)?;
    let watch = readable(network.watch()?).step(|| "watch the network".into())?;
    let gone = io::Error::from(io::ErrorKind::NotFound);
    let (_, monitor) = journal::watch_monitor(dir)
        .ok_or(gone)
        .step(|| "find the pod's monitor".into())?;
    let monitor: AsyncFd<OwnedFd> = readable(monitor).step(|| "watch the monitor".into())?;
    let agent = guest::dial(&dir.vsock())
        .await
        .map_err(io::Error::other)
        .step(|| "reach the guest's agent".into())?;
    let agent = Agent::new(agent);
    let listener = UnixListener::bind(dir.network()).step(|| "listen in the pod".into())?;
    say(OK);
    let ends = Ends {
        dir,
        agent: &agent,
        journal: &journal,
    };
    loop {
        let client = tokio::select! {
            _ = monitor.readable() => return Ok(()),
            client = listener.accept() => client.ok().map(|(stream, _)| stream),
            ready = watch.readable() => {
                watch.get_ref().drain();
                ready.step(|| "watch the network".into())?.clear_ready();
                None
            }
        };
        let carried = network.bring(ends).await;
        answer(client, &carried).await;
    }
}

/// Not `println!`, which panics when nobody reads any more.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

async fn answer(client: Option<UnixStream>, carried: &Result<(), NetworkError>) {
    let line = match carried {
        Ok(()) => OK.to_owned(),
        Err(error) => one_line(error),
    };
    if let Some(mut client) = client {
        // Who doesn't wait any more doesn't need it.
        let _ = client.write_all(format!("{line}\n").as_bytes()).await;
    }
}

fn readable<T: std::os::fd::AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: both kinds of owner that this is called with keep their descriptor open for as long as they live.
    unsafe { AsyncFd::register_with_interest(owner, Interest::READABLE) }.map_err(io::Error::from)
}
