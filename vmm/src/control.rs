//! The control socket: one [`Control`] per line in, one [`Reply`] per line out.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use vmbox_config::{Control, Reply};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::event::{Wake, Wakes};

/// The longest request is a fraction of this.
const LINE_BYTES: usize = 1024;
/// The host library needs one.
const CLIENTS: usize = 8;

/// What is done about a request; with it comes the descriptor that it is about, if it is one of those that need one. None:
/// it is answered later, by [`ControlSocket::settle`].
type Answer<'a> = dyn FnMut(Control, Option<OwnedFd>) -> Option<Reply> + 'a;

/// The listening socket and its connections. The socket file is unlinked when it is dropped.
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
    clients: HashMap<u32, Client>,
    next: u32,
}

struct Client {
    stream: UnixStream,
    input: Vec<u8>,
    /// Came with the line that is being read, or the one before.
    descriptor: Option<OwnedFd>,
    /// Waits for an answer.
    waits: bool,
}

impl ControlSocket {
    /// Listens at `path`, for its owner only.
    ///
    /// # Errors
    /// The socket can't be made there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        // Guards the file before it can be of use; nobody is accepted before this returns.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            path: path.into(),
            listener,
            clients: HashMap::new(),
            next: 0,
        })
    }

    /// To wake for [`Wake::ControlListener`].
    pub fn listener_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }

    /// Accepts who is waiting; beyond eight connections at once, closes them.
    pub fn accept(&mut self, wakes: &Wakes) {
        while let Ok((stream, _)) = self.listener.accept() {
            let number = self.next;
            self.next = self.next.wrapping_add(1);
            let ready = stream
                .set_nonblocking(true)
                .and_then(|()| wakes.add(stream.as_raw_fd(), Wake::ControlClient(number)));
            if ready.is_ok() && self.clients.len() < CLIENTS {
                self.clients.insert(
                    number,
                    Client {
                        stream,
                        input: Vec::new(),
                        descriptor: None,
                        waits: false,
                    },
                );
            }
        }
    }

    /// Answers what a connection has sent, by `answer`; drops it when it is done or misbehaves.
    pub fn serve(&mut self, number: u32, answer: &mut Answer<'_>) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        if !client.serve(answer) {
            self.clients.remove(&number);
        }
    }

    /// Answers whoever waits; drops those who don't take it.
    pub fn settle(&mut self, reply: &Reply) {
        self.clients
            .retain(|_, client| !std::mem::take(&mut client.waits) || client.send(reply));
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Client {
    /// Whether the connection stays.
    fn serve(&mut self, answer: &mut Answer<'_>) -> bool {
        let mut chunk = [0; LINE_BYTES];
        let received = match self.stream.recv_with_fd(&mut chunk) {
            Ok((0, _)) => return false,
            Ok((received, descriptor)) => {
                self.descriptor = descriptor.map(OwnedFd::from).or(self.descriptor.take());
                received
            }
            Err(error) => return error.errno() == libc::EAGAIN,
        };
        self.input.extend_from_slice(&chunk[..received]);
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            match reply(&line, &mut self.descriptor, answer) {
                Some(reply) if !self.send(&reply) => return false,
                Some(_) => {}
                None => self.waits = true,
            }
        }
        if self.input.len() > LINE_BYTES {
            self.send(&Reply::Error {
                message: format!("a request has at most {LINE_BYTES} bytes"),
            });
            return false;
        }
        true
    }

    /// A client that does not read its replies is dropped rather than waited for.
    fn send(&mut self, reply: &Reply) -> bool {
        let Ok(mut line) = serde_json::to_vec(reply) else {
            return false;
        };
        line.push(b'\n');
        self.stream.write_all(&line).is_ok()
    }
}

fn reply(line: &[u8], descriptor: &mut Option<OwnedFd>, answer: &mut Answer<'_>) -> Option<Reply> {
    if line.len() > LINE_BYTES {
        return Some(Reply::Error {
            message: format!("a request has at most {LINE_BYTES} bytes"),
        });
    }
    match serde_json::from_slice(line) {
        Ok(control @ Control::AttachNic { .. }) => answer(control, descriptor.take()),
        Ok(control) => answer(control, None),
        Err(error) => Some(Reply::Error {
            message: format!("malformed request: {error}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    /// Sends `input` to a socket that answers every request with Ok; returns what comes back.
    fn exchange(input: &[u8]) -> Vec<Reply> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let wakes = Wakes::new().unwrap();
        let mut socket = ControlSocket::bind(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.write_all(input).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        socket.accept(&wakes);
        while !socket.clients.is_empty() {
            socket.serve(0, &mut |_, _| Some(Reply::Ok));
        }
        drop(socket);
        assert!(!path.exists());
        BufReader::new(stream)
            .lines()
            .map_while(Result::ok)
            .map(|line| serde_json::from_str(&line).unwrap())
            .collect()
    }

    #[test]
    fn each_line_is_answered_in_order() {
        let replies = exchange(b"{\"op\":\"pause\"}\n{\"op\":\"fly\"}\n{\"op\":\"stats\"}\n");
        assert!(
            matches!(replies[..], [Reply::Ok, Reply::Error { .. }, Reply::Ok]),
            "{replies:?}"
        );
    }

    #[test]
    fn a_descriptor_comes_with_the_request_that_it_is_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let wakes = Wakes::new().unwrap();
        let mut socket = ControlSocket::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let lines = "{\"op\":\"attach_nic\",\"slot\":1}\n{\"op\":\"attach_nic\",\"slot\":2}\n";
        stream
            .send_with_fd(lines.as_bytes(), null.as_raw_fd())
            .unwrap();
        socket.accept(&wakes);
        let mut seen = Vec::new();
        socket.serve(0, &mut |request, descriptor| {
            seen.push((request, descriptor.is_some()));
            Some(Reply::Ok)
        });
        let attach = |slot| Control::AttachNic { slot };
        assert_eq!(seen, [(attach(1), true), (attach(2), false)]);
    }

    #[test]
    fn an_answer_may_come_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let wakes = Wakes::new().unwrap();
        let mut socket = ControlSocket::bind(&path).unwrap();
        let mut stream = UnixStream::connect(&path).unwrap();
        stream
            .write_all(b"{\"op\":\"memory\",\"extra_mib\":1}\n")
            .unwrap();
        socket.accept(&wakes);
        socket.serve(0, &mut |_, _| None);
        stream.set_nonblocking(true).unwrap();
        let early = stream.recv_with_fd(&mut [0; 8]).unwrap_err();
        assert_eq!(early.errno(), libc::EAGAIN);
        socket.settle(&Reply::Ok);
        socket.settle(&Reply::Ok);
        drop(socket);
        let answers: Vec<_> = BufReader::new(stream).lines().map(Result::unwrap).collect();
        assert_eq!(answers, [r#"{"reply":"ok"}"#]);
    }

    #[test]
    fn an_endless_line_is_refused_and_the_connection_closed() {
        let replies = exchange(&[b'x'; 5000]);
        assert!(matches!(replies[..], [Reply::Error { .. }]), "{replies:?}");
    }

    #[test]
    fn bytes_that_are_not_utf8_are_an_error_not_an_end() {
        let replies = exchange(b"\xff\xfe\n{\"op\":\"resume\"}\n");
        assert!(
            matches!(replies[..], [Reply::Error { .. }, Reply::Ok]),
            "{replies:?}"
        );
    }
}
