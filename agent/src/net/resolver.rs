//! 127.0.0.11 port 53 in the guest: every query goes to the host, where Docker's resolver is.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use vmbox_protocol::resolver::{
    CONNECTION, DATAGRAM, MESSAGE_MAX, PATIENCE_S, QUERIES_MAX, RESOLVER_PORT,
};

use crate::host::Dialer;

const PATIENCE: Duration = Duration::from_secs(PATIENCE_S);

/// Answers as long as it exists.
#[derive(Debug)]
pub struct Resolver {
    tasks: [JoinHandle<()>; 2],
}

impl Resolver {
    /// Listens at `address`.
    ///
    /// # Errors
    /// Another program has the address.
    pub async fn start(address: SocketAddr, dialer: Dialer) -> io::Result<Self> {
        let datagrams = Arc::new(UdpSocket::bind(address).await?);
        // The same port, if any will do.
        let connections = TcpListener::bind(datagrams.local_addr()?).await?;
        let room = Arc::new(Semaphore::new(QUERIES_MAX));
        Ok(Self {
            tasks: [
                tokio::spawn(serve_datagrams(datagrams, dialer.clone(), room.clone())),
                tokio::spawn(serve_connections(connections, dialer, room)),
            ],
        })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn serve_datagrams(socket: Arc<UdpSocket>, dialer: Dialer, room: Arc<Semaphore>) {
    let mut query = vec![0; MESSAGE_MAX];
    loop {
        // An error is that of an answer which nobody wanted any more.
        let Ok((length, client)) = socket.recv_from(&mut query).await else {
            continue;
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            continue;
        };
        let (socket, dialer) = (socket.clone(), dialer.clone());
        let query = query.get(..length).unwrap_or_default().to_vec();
        tokio::spawn(async move {
            // Who gets no answer asks again.
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, ask(&dialer, &query)).await {
                let _ = socket.send_to(&answer, client).await;
            }
            drop(place);
        });
    }
}

async fn ask(dialer: &Dialer, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut host = dialer.dial(RESOLVER_PORT).await?;
    host.write_u8(DATAGRAM).await?;
    host.write_u16(u16::try_from(query.len()).unwrap_or(u16::MAX))
        .await?;
    host.write_all(query).await?;
    let length = host.read_u16().await?;
    let mut answer = vec![0; length.into()];
    host.read_exact(&mut answer).await?;
    Ok(answer)
}

async fn serve_connections(listener: TcpListener, dialer: Dialer, room: Arc<Semaphore>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of descriptors, perhaps for a moment.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            continue;
        };
        let dialer = dialer.clone();
        tokio::spawn(async move {
            if let Ok(mut host) = dialer.dial(RESOLVER_PORT).await
                && host.write_u8(CONNECTION).await.is_ok()
            {
                let _ = copy_bidirectional(&mut client, &mut host).await;
            }
            drop(place);
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpStream, UnixListener};

    use super::*;

    /// A resolver whose host answers every message with its bytes in reverse.
    async fn resolver(dir: &std::path::Path) -> (Resolver, SocketAddr) {
        let base = dir.join("host");
        let path = format!("{}_{RESOLVER_PORT}", base.display());
        let host = UnixListener::bind(path).unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = host.accept().await.unwrap();
                let kind = stream.read_u8().await.unwrap();
                assert!(matches!(kind, DATAGRAM | CONNECTION));
                let length = stream.read_u16().await.unwrap();
                let mut message = vec![0; length.into()];
                stream.read_exact(&mut message).await.unwrap();
                message.reverse();
                stream.write_u16(length).await.unwrap();
                stream.write_all(&message).await.unwrap();
            }
        });
        // The port must be free for both protocols, so one that nobody was given.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let resolver = Resolver::start(address, Dialer::Unix(base)).await.unwrap();
        (resolver, address)
    }

    #[tokio::test]
    async fn datagrams_are_answered_to_who_asked() {
        let dir = tempfile::tempdir().unwrap();
        let (_resolver, address) = resolver(dir.path()).await;
        for text in ["first", "second"] {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(text.as_bytes(), address).await.unwrap();
            let mut answer = [0; 64];
            let length = client.recv(&mut answer).await.unwrap();
            let reversed: String = text.chars().rev().collect();
            assert_eq!(answer[..length], *reversed.as_bytes());
        }
    }

    #[tokio::test]
    async fn connections_are_carried_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let (_resolver, address) = resolver(dir.path()).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"\0\x03abc").await.unwrap();
        let mut answer = [0; 5];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *b"\0\x03cba");
    }
}
