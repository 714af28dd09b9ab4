//! The monitor's control socket: one request, one reply.

use std::{
    io::{self, BufRead, BufReader, IoSlice, Write},
    mem::MaybeUninit,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::Duration,
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vmbox_config::{Control, Reply};

/// The monitor answers at once, unless its machine is very busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The monitor can't be reached, or does not answer.
    #[error("talk to the monitor")]
    Socket(#[from] io::Error),
    /// The monitor's own words.
    #[error("{0}")]
    Refused(String),
}

/// Asks the monitor that listens on `socket`; a descriptor goes along with the request.
///
/// # Errors
/// See [`ControlError`].
pub fn ask(
    socket: &Path,
    request: &Control,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), ControlError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request).map_err(io::Error::from)?;
    line.push(b'\n');
    let sent = match descriptor {
        Some(descriptor) => send_with(&stream, &line, descriptor)?,
        None => 0,
    };
    stream.write_all(line.get(sent..).unwrap_or_default())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str(&answer).map_err(io::Error::from)? {
        Reply::Ok | Reply::Stats(_) => Ok(()),
        Reply::Error { message } => Err(ControlError::Refused(message)),
    }
}

fn send_with(stream: &UnixStream, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    let data = [IoSlice::new(bytes)];
    Ok(sendmsg(stream, &data, &mut ancillary, SendFlags::NOSIGNAL)?)
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::net::UnixListener};

    use super::*;

    #[test]
    fn a_refusal_is_told_in_the_monitors_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let monitor = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let reply = r#"{"reply":"error","message":"there is no slot 7"}"#;
            (&stream)
                .write_all(format!("{reply}\n").as_bytes())
                .unwrap();
            line
        });
        let null = std::fs::File::open("/dev/null").unwrap();
        let request = Control::AttachNic { slot: 7 };
        let error = ask(&path, &request, Some(null.as_fd())).unwrap_err();
        assert_eq!(error.to_string(), "there is no slot 7");
        assert_eq!(
            monitor.join().unwrap().trim(),
            r#"{"op":"attach_nic","slot":7}"#
        );
    }
}
