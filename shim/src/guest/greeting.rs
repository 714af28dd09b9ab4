//! Waits for the agent to dial in, checks its greeting, and turns the connection into a ttrpc client.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};
use ttrpc::asynchronous::{Client, transport::Socket};
use vmbox_protocol::{GUEST_PORT, Hello, HelloError, MAX_LINE, Welcome};

/// A connected agent has this long to say who it is, on a machine that is very busy too.
const GREETING: Duration = Duration::from_secs(120);

/// Why there is no agent to talk to.
#[derive(Debug, thiserror::Error)]
pub enum GreetingError {
    /// The socket failed.
    #[error("talk to the guest's agent")]
    Io(#[from] io::Error),
    /// Another version, or not an agent.
    #[error(transparent)]
    Refused(#[from] HelloError),
    /// It connected and stayed silent.
    #[error("the guest's agent connected but did not greet within {} s", GREETING.as_secs())]
    Silent,
}

/// The listener that the agent dials; made before the VM, so that no dial is lost.
#[derive(Debug)]
pub struct Greeter(UnixListener);

impl Greeter {
    /// Listens at `<vsock>_<AGENT_PORT>`.
    ///
    /// # Errors
    /// As bind(2) says.
    pub fn listen(path: &Path) -> io::Result<Self> {
        UnixListener::bind(path).map(Self)
    }

    /// Waits for the agent. Waits for ever: the caller has the deadline.
    ///
    /// # Errors
    /// What connected is not an agent of ours.
    pub async fn accept(self) -> Result<Client, GreetingError> {
        let (mut stream, _) = self.0.accept().await?;
        tokio::time::timeout(GREETING, greet(&mut stream))
            .await
            .map_err(|_| GreetingError::Silent)??;
        Ok(Client::new(Socket::from(stream)))
    }
}

/// Connects to the agent of a pod that runs already: through the monitor's vsock socket, to the guest's own port.
///
/// # Errors
/// The pod has ended, or what answers is not an agent of ours.
pub async fn dial(vsock: &Path) -> Result<Client, GreetingError> {
    let meet = async {
        let mut stream = UnixStream::connect(vsock).await?;
        stream
            .write_all(format!("CONNECT {GUEST_PORT}\n").as_bytes())
            .await?;
        let answer = read_line(&mut stream).await?;
        if !answer.starts_with("OK ") {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        greet(&mut stream).await?;
        Ok(Client::new(Socket::from(stream)))
    };
    tokio::time::timeout(GREETING, meet)
        .await
        .map_err(|_| GreetingError::Silent)?
}

async fn greet(stream: &mut UnixStream) -> Result<(), GreetingError> {
    let line = read_line(stream).await?;
    let accepted = Hello::accept(&line);
    let answer = match &accepted {
        Ok(_) => Welcome::Ok,
        Err(error) => Welcome::Error(error.to_string()),
    };
    let mut answer = serde_json::to_vec(&answer).map_err(io::Error::from)?;
    answer.push(b'\n');
    stream.write_all(&answer).await?;
    let hello = accepted?;
    tracing::debug!(version = hello.version, "the agent is ready");
    Ok(())
}

/// One byte at a time: what follows the line belongs to ttrpc.
async fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < MAX_LINE {
        match stream.read_u8().await? {
            b'\n' => return Ok(String::from_utf8_lossy(&line).into_owned()),
            byte => line.push(byte),
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "the greeting is too long",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn meet(says: &str) -> (Result<(), GreetingError>, String) {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(says.as_bytes()).await.unwrap();
        let result = greet(&mut ours).await;
        drop(ours);
        let mut answer = String::new();
        theirs.read_to_string(&mut answer).await.unwrap();
        (result, answer)
    }

    #[tokio::test]
    async fn our_agent_is_welcome() {
        let hello = serde_json::to_string(&Hello::of_this_build()).unwrap() + "\n";
        let (result, answer) = meet(&hello).await;
        result.unwrap();
        assert_eq!(answer, "\"ok\"\n");
    }

    #[tokio::test]
    async fn another_version_is_told_why() {
        let (result, answer) =
            meet("{\"vmbox\":\"agent\",\"protocol\":99,\"version\":\"x\"}\n").await;
        assert!(matches!(
            result,
            Err(GreetingError::Refused(HelloError::Version {
                agent: 99,
                ..
            }))
        ));
        assert!(
            answer.contains("error") && answer.contains("99"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn an_endless_line_is_refused() {
        let (result, _) = meet(&"x".repeat(MAX_LINE)).await;
        assert!(matches!(result, Err(GreetingError::Io(_))));
    }
}
