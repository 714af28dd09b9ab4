//! The connection to the host: dial, greet, serve until the host closes it.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::time::{TimeVal, TimeValLike as _};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;
use tokio_vsock::{VsockAddr, VsockListener, VsockStream};
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;
use vmbox_protocol::{AGENT_PORT, GUEST_PORT, HOST_CID, Hello, MAX_LINE, Welcome};

use crate::container::Tools;
use crate::net::Network;
use crate::pod::Pod;
use crate::reaper::Reaper;
use crate::rpc;

/// Where the host is.
#[derive(Debug, Clone)]
pub enum Endpoint {
    /// Behind virtio-vsock.
    Vsock,
    /// Behind a Unix socket that we listen on (developers only).
    Unix(PathBuf),
}

/// Why the connection could not be served.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("the host is not there: {0}")]
    Dial(#[source] io::Error),
    #[error("the host did not answer the greeting: {0}")]
    Greeting(#[source] io::Error),
    #[error("the host refuses this agent: {0}")]
    Refused(String),
    #[error(transparent)]
    Boot(#[from] crate::boot::BootError),
    #[error("ttrpc: {0}")]
    Serve(#[from] ttrpc::Error),
    #[error("event loop: {0}")]
    Runtime(#[source] io::Error),
}

/// Opens a connection per stdio stream.
#[derive(Debug, Clone)]
pub enum Dialer {
    /// Port of the host.
    Vsock,
    /// Socket `<path>_<port>`.
    Unix(PathBuf),
}

impl Dialer {
    /// Connects to one of the host's ports.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn dial(&self, port: u32) -> io::Result<HostStream> {
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("host port {port}: {error}"));
        Ok(match self {
            Self::Vsock => HostStream::new(
                connect(VsockAddr::new(HOST_CID, port))
                    .await
                    .map_err(named)?,
            ),
            Self::Unix(path) => {
                let name = format!("{}_{port}", path.display());
                HostStream::new(tokio::net::UnixStream::connect(name).await.map_err(named)?)
            }
        })
    }
}

/// Connects as [`VsockStream::connect`] does, with another patience.
async fn connect(address: VsockAddr) -> io::Result<VsockStream> {
    let connected = tokio::task::spawn_blocking(move || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        be_patient(&socket)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &address)?;
        Ok::<_, io::Error>(socket)
    });
    VsockStream::new(connected.await??.into())
}

/// Gives the socket [`CONNECTION_S`] to connect (linux/vm_sockets.h, `SO_VM_SOCKETS_CONNECT_TIMEOUT`).
fn be_patient(socket: &OwnedFd) -> io::Result<()> {
    const SO_VM_SOCKETS_CONNECT_TIMEOUT: libc::c_int = 6;
    let timeout = TimeVal::seconds(CONNECTION_S);
    // SAFETY: the option's value is a timeval, as TimeVal is, and lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::AF_VSOCK,
            SO_VM_SOCKETS_CONNECT_TIMEOUT,
            (&raw const timeout).cast(),
            size_of::<TimeVal>() as libc::socklen_t,
        )
    };
    Ok(Errno::result(result).map(drop)?)
}

trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for T {}

/// A connection to the host. Its end is announced, as ttrpc keeps it for itself.
pub struct HostStream {
    inner: Box<dyn Duplex>,
    ended: Option<Arc<Notify>>,
}

/// How many may be in the middle of their greeting, and for how long: longer than the host waits.
const MOST_GREETINGS: usize = 64;
const GREETING: Duration = Duration::from_secs(150);
/// How long the host's monitor may take to answer. Linux' own 2 s are too few on a machine that is very busy.
const CONNECTION_S: i64 = 120;

/// Those that dial the guest's own port.
type More = Pin<Box<dyn futures::Stream<Item = io::Result<HostStream>> + Send>>;

impl std::fmt::Debug for HostStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostStream")
    }
}

impl HostStream {
    fn new(inner: impl Duplex + 'static) -> Self {
        Self {
            inner: Box::new(inner),
            ended: None,
        }
    }
}

impl AsyncRead for HostStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        let at_end = match &result {
            Poll::Ready(Ok(())) => buf.filled().len() == before && buf.remaining() > 0,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        if at_end && let Some(ended) = &self.ended {
            ended.notify_one();
        }
        result
    }
}

impl AsyncWrite for HostStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// Runs the agent until the host closes the connection, which is the orderly end.
///
/// # Errors
/// There never was a connection, or the host refused us.
pub fn run(endpoint: Endpoint, network: Network) -> Result<(), HostError> {
    // One thread: the guest often has one CPU, and each more costs memory. What blocks goes to spawn_blocking.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_stack_size(256 * 1024)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(HostError::Runtime)?
        .block_on(serve(endpoint, network))
}

async fn serve(endpoint: Endpoint, network: Network) -> Result<(), HostError> {
    let reaper = Reaper::default();
    let reaping = tokio::spawn(reaper.clone().run());
    let (mut stream, dialer, more) = meet(endpoint).await.map_err(HostError::Dial)?;
    greet(&mut stream).await?;
    let ended = Arc::new(Notify::new());
    stream.ended = Some(ended.clone());

    let pod = Arc::new(Pod::new(Tools { reaper, dialer }, network));
    let connection = futures::stream::once(async { Ok::<_, io::Error>(stream) }).chain(more);
    let mut server = Server::new().add_listener(Listener::new(connection));
    for service in rpc::services(&pod) {
        server = server.register_service(service);
    }
    server.start().await?;
    let abandoned = async {
        ended.notified().await;
        if pod.is_lasting() {
            // Further connections are served; an end is asked for, or comes with the machine's.
            futures::future::pending().await
        }
    };
    tokio::select! {
        () = abandoned => {}
        () = pod.shutdown.notified() => {
            // The host closes the connection when it has the answer; one that died meanwhile never will.
            let _ = tokio::time::timeout(Duration::from_secs(1), ended.notified()).await;
        }
        failed = reaping => {
            let cause = failed.map_or_else(io::Error::from, |r| r.err().unwrap_or_else(|| io::ErrorKind::Other.into()));
            return Err(HostError::Runtime(cause));
        }
    }
    Ok(())
}

/// The first connection, how to dial more, and those that the host dials.
async fn meet(endpoint: Endpoint) -> io::Result<(HostStream, Dialer, More)> {
    match endpoint {
        Endpoint::Vsock => {
            // Before the greeting: whoever knows of us finds us.
            let listener = VsockListener::bind(VsockAddr::new(libc::VMADDR_CID_ANY, GUEST_PORT))?;
            let stream = Dialer::Vsock.dial(AGENT_PORT).await?;
            let more = listener
                .incoming()
                .map(from_host)
                .buffer_unordered(MOST_GREETINGS)
                .filter_map(|greeted| futures::future::ready(greeted.transpose()));
            Ok((stream, Dialer::Vsock, Box::pin(more)))
        }
        Endpoint::Unix(path) => {
            let listener = tokio::net::UnixListener::bind(&path)?;
            let (stream, _) = listener.accept().await?;
            let more = futures::stream::unfold(listener, async |listener| {
                let accepted = listener.accept().await;
                Some((accepted.map(|(s, _)| HostStream::new(s)), listener))
            });
            let stream = HostStream::new(stream);
            Ok((stream, Dialer::Unix(path), Box::pin(more)))
        }
    }
}

/// Greets one who came by the guest's port. Nobody but the host is served, should a container ever reach us.
async fn from_host(incoming: io::Result<VsockStream>) -> io::Result<Option<HostStream>> {
    let stream = incoming?;
    if stream.peer_addr()?.cid() != HOST_CID {
        return Ok(None);
    }
    let mut stream = HostStream::new(stream);
    let greeted = tokio::time::timeout(GREETING, greet(&mut stream)).await;
    Ok(matches!(greeted, Ok(Ok(()))).then_some(stream))
}

/// The agent's first line and the host's answer, byte by byte so that nothing of ttrpc is read.
async fn greet(stream: &mut HostStream) -> Result<(), HostError> {
    let mut hello =
        serde_json::to_vec(&Hello::of_this_build()).map_err(|e| HostError::Greeting(e.into()))?;
    hello.push(b'\n');
    stream
        .write_all(&hello)
        .await
        .map_err(HostError::Greeting)?;
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await.map_err(HostError::Greeting)? {
            b'\n' => break,
            byte if line.len() < MAX_LINE => line.push(byte),
            _ => {
                return Err(HostError::Greeting(io::Error::other(
                    "the answer is too long",
                )));
            }
        }
    }
    match serde_json::from_slice(&line).map_err(|e| HostError::Greeting(e.into()))? {
        Welcome::Ok => Ok(()),
        Welcome::Error(why) => Err(HostError::Refused(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn greeted_with(answer: &'static [u8]) -> (Result<(), HostError>, Vec<u8>, HostStream) {
        let (mut host, agent) = tokio::net::UnixStream::pair().unwrap();
        host.write_all(answer).await.unwrap();
        let mut stream = HostStream::new(agent);
        let result = greet(&mut stream).await;
        let mut said = vec![0; 1024];
        let count = host.read(&mut said).await.unwrap();
        said.truncate(count);
        drop(host);
        (result, said, stream)
    }

    #[tokio::test]
    async fn greeting_is_one_line_and_reads_no_further_than_the_answer() {
        let (result, said, mut stream) = greeted_with(b"\"ok\"\nttrpc").await;
        result.unwrap();
        let line = std::str::from_utf8(&said)
            .unwrap()
            .strip_suffix('\n')
            .unwrap();
        assert_eq!(Hello::accept(line).unwrap(), Hello::of_this_build());
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "ttrpc");
    }

    #[tokio::test]
    async fn refusal_says_why() {
        let (result, _, _) = greeted_with(b"{\"error\":\"too old\"}\n").await;
        assert_eq!(
            result.unwrap_err().to_string(),
            "the host refuses this agent: too old"
        );
    }

    #[tokio::test]
    async fn end_of_the_connection_is_announced() {
        let (host, agent) = tokio::net::UnixStream::pair().unwrap();
        let ended = Arc::new(Notify::new());
        let mut stream = HostStream {
            ended: Some(ended.clone()),
            ..HostStream::new(agent)
        };
        drop(host);
        assert!(stream.read_u8().await.is_err());
        ended.notified().await;
    }
}
