//! One stream of a container: a port that the agent dials, then a thread that copies.

use std::{
    fs, io,
    os::unix::net::{self, UnixStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::{net::UnixListener, sync::oneshot, task::JoinHandle};
use vmbox_protocol::FIRST_STREAM_PORT;

use super::copy;
use crate::{
    pod::{fill_random, place::PodDir},
    user::timing::Timing,
};

/// Which of our streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Our standard input, to the container.
    Stdin,
    /// The container's standard output (or terminal), to ours.
    Stdout,
    /// Its standard error, to ours.
    Stderr,
}

/// A stream that the agent has been, or will be, asked to dial.
#[derive(Debug)]
pub struct Stream {
    port: u32,
    path: PathBuf,
    copying: JoinHandle<io::Result<oneshot::Receiver<io::Result<()>>>>,
}

/// An agent dials before its process can have ended: after that, this long for a dial still in the air.
const STRAGGLER: Duration = Duration::from_secs(2);

impl Stream {
    /// Listens on a port of the pod that nobody else has, and copies as soon as the agent has dialed. `announce` is called
    /// with the path of the socket before it is made.
    ///
    /// # Errors
    /// As bind(2) or `announce` says.
    pub fn listen(
        dir: &PodDir,
        direction: Direction,
        announce: &dyn Fn(&Path) -> io::Result<()>,
        timing: &Arc<Timing>,
    ) -> io::Result<Self> {
        let (port, path, listener) = bind_free_port(dir, announce)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let timing = Arc::clone(timing);
        let socket_path = path.clone();
        let copying = tokio::spawn(async move {
            let accepted = listener.accept().await;
            let _ = fs::remove_file(socket_path);
            let socket = accepted?.0.into_std()?;
            socket.set_nonblocking(false)?;
            spawn_copy(socket, direction, timing)
        });
        Ok(Self {
            port,
            path,
            copying,
        })
    }

    /// The vsock port.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Waits until everything that the container wrote has been handed on. For output streams, after the process ended.
    ///
    /// # Errors
    /// Some of it was lost: writing failed, and not because the reader has left.
    pub async fn drained(mut self) -> io::Result<()> {
        match tokio::time::timeout(STRAGGLER, &mut self.copying).await {
            // No answer: the thread is gone, and it said why.
            Ok(Ok(Ok(done))) => return done.await.unwrap_or(Ok(())),
            Ok(Ok(Err(error))) => tracing::warn!(%error, "a stream could not be accepted"),
            Ok(Err(_)) | Err(_) => tracing::debug!("the agent never dialed a stream"),
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.copying.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens on a port of the pod that nobody else has: bind(2) fails if the path exists, and that is what makes a port ours,
/// also between the processes of one pod. What is announced will be removed if we are killed, so a port that is taken is not
/// announced.
///
/// # Errors
/// As `announce` says, or bind(2), for another reason than that.
pub fn bind_free_port(
    dir: &PodDir,
    announce: &dyn Fn(&Path) -> io::Result<()>,
) -> io::Result<(u32, PathBuf, net::UnixListener)> {
    loop {
        let mut random = [0; 4];
        fill_random(&mut random);
        // The upper half belongs to the guest's own ephemeral ports.
        let port =
            FIRST_STREAM_PORT + u32::from_le_bytes(random) % (0x7fff_ffff - FIRST_STREAM_PORT);
        let path = dir.vsock_port(port);
        if fs::symlink_metadata(&path).is_ok() {
            continue;
        }
        announce(&path)?;
        match net::UnixListener::bind(&path) {
            Ok(listener) => return Ok((port, path, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
}

fn spawn_copy(
    socket: UnixStream,
    direction: Direction,
    timing: Arc<Timing>,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (done, finished) = oneshot::channel();
    thread::Builder::new()
        .name(format!("{direction:?}").to_lowercase())
        .stack_size(128 << 10)
        .spawn(move || {
            let first = || timing.mark("first byte");
            let result = match direction {
                Direction::Stdin => copy::send_stdin(&socket),
                Direction::Stdout => copy::receive(
                    &socket,
                    &mut copy::Descriptor(rustix::stdio::stdout()),
                    first,
                ),
                Direction::Stderr => copy::receive(
                    &socket,
                    &mut copy::Descriptor(rustix::stdio::stderr()),
                    || (),
                ),
            };
            drop(socket);
            let _ = done.send(unless_the_reader_left(result));
        })?;
    Ok(finished)
}

/// EPIPE: whoever read us has left, as `head` does.
fn unless_the_reader_left(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_a_loss_and_a_reader_that_left_is_not() {
        let left = Err(io::ErrorKind::BrokenPipe.into());
        assert!(unless_the_reader_left(left).is_ok());
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        io::Write::write_all(&mut theirs, b"x").unwrap();
        let mut full = fs::File::options().write(true).open("/dev/full").unwrap();
        let lost = copy::receive(&ours, &mut full, || ());
        let error = unless_the_reader_left(lost).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn ports_of_one_pod_differ_and_leave_no_socket() {
        let run = tempfile::tempdir().unwrap();
        let dir = PodDir::at(run.path().to_owned());
        let timing = Arc::new(Timing::start());
        let announced = std::cell::RefCell::new(Vec::new());
        let announce = |path: &Path| {
            assert!(!path.exists());
            announced.borrow_mut().push(path.to_owned());
            Ok(())
        };
        let one = Stream::listen(&dir, Direction::Stdout, &announce, &timing).unwrap();
        let two = Stream::listen(&dir, Direction::Stderr, &announce, &timing).unwrap();
        let paths = [dir.vsock_port(one.port()), dir.vsock_port(two.port())];
        assert_eq!(*announced.borrow(), paths);
        assert_ne!(one.port(), two.port());
        assert!(one.port() >= FIRST_STREAM_PORT);
        drop((one, two));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
    }
}
