//! Docker's resolver for a guest: queries come by vsock, and are asked in the pod's network namespace, where 127.0.0.11 is.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
};
use vmbox_protocol::resolver::{
    CONNECTION, DATAGRAM, MESSAGE_MAX, PATIENCE_S, QUERIES_MAX, RESOLVER,
};

use super::namespace::Namespace;

const PATIENCE: Duration = Duration::from_secs(PATIENCE_S);

/// Whether a `resolv.conf` names Docker's resolver.
pub fn is_named_in(resolv_conf: &Path) -> bool {
    fs::read_to_string(resolv_conf).is_ok_and(|text| names_it(&text))
}

fn names_it(resolv_conf: &str) -> bool {
    let wanted = RESOLVER.ip().to_string();
    resolv_conf.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver") && words.next() == Some(&wanted)
    })
}

/// Answers whoever connects to `listener`, for ever.
pub async fn serve(listener: UnixListener, namespace: Arc<Namespace>) {
    serve_by(listener, namespace, RESOLVER.into()).await;
}

async fn serve_by(listener: UnixListener, namespace: Arc<Namespace>, resolver: SocketAddr) {
    let room = Arc::new(Semaphore::new(QUERIES_MAX));
    loop {
        let Ok((guest, _)) = listener.accept().await else {
            // Out of descriptors, perhaps for a moment.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = room.clone().try_acquire_owned() else {
            continue;
        };
        let namespace = namespace.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(guest, &namespace, resolver).await {
                tracing::debug!(%error, "a name was not resolved");
            }
            drop(place);
        });
    }
}

async fn answer(
    mut guest: UnixStream,
    namespace: &Namespace,
    resolver: SocketAddr,
) -> io::Result<()> {
    match tokio::time::timeout(PATIENCE, guest.read_u8()).await?? {
        DATAGRAM => tokio::time::timeout(PATIENCE, datagram(guest, namespace, resolver)).await?,
        CONNECTION => {
            let stream = namespace.enter(|| {
                let stream = TcpStream::connect_timeout(&resolver, PATIENCE)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            })?;
            let mut stream = tokio::net::TcpStream::from_std(stream)?;
            copy_bidirectional(&mut guest, &mut stream).await.map(drop)
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn datagram(
    mut guest: UnixStream,
    namespace: &Namespace,
    resolver: SocketAddr,
) -> io::Result<()> {
    let length = guest.read_u16().await?;
    let mut query = vec![0; length.into()];
    guest.read_exact(&mut query).await?;
    let socket = namespace.enter(|| {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        // So that nobody else's datagrams are taken for the answer.
        socket.connect(resolver)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    })?;
    let socket = tokio::net::UdpSocket::from_std(socket)?;
    socket.send(&query).await?;
    let mut reply = vec![0; MESSAGE_MAX];
    let length = socket.recv(&mut reply).await?;
    let reply = reply.get(..length).unwrap_or_default();
    guest
        .write_u16(u16::try_from(length).unwrap_or(u16::MAX))
        .await?;
    guest.write_all(reply).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_nameserver_line_names_it() {
        assert!(names_it(
            "search a\nnameserver 127.0.0.11\noptions ndots:0\n"
        ));
        assert!(!names_it("# nameserver 127.0.0.11\nnameserver 10.0.0.1\n"));
        assert!(!names_it("nameserver 127.0.0.111\n"));
        assert!(!is_named_in(Path::new("/no/such/file")));
    }
}
