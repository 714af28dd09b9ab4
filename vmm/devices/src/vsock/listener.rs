//! The host's own way in and out: the listening socket, and the sockets that the guest can dial.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// `sun_path` less its closing zero, and less the longest `_PORT`.
const MAX_PATH: usize = 107 - 11;

/// The Unix socket on which host programs ask for guest ports; its file is removed with it.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds and listens. Programs may connect from now on; they are served when the guest's driver is up.
    ///
    /// # Errors
    /// The path is taken, can't be made, or is too long for a Unix socket together with `_PORT`.
    pub fn bind(path: PathBuf) -> io::Result<Self> {
        if path.as_os_str().as_bytes().len() > MAX_PATH {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("{} is longer than {MAX_PATH} bytes", path.display()),
            ));
        }
        let socket = UnixListener::bind(&path)?;
        let listener = Self { socket, path };
        listener.socket.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Another handle on the same socket, for one activation.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn door(&self) -> io::Result<Door> {
        Ok(Door {
            socket: self.socket.try_clone()?,
            path: self.path.clone(),
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What a handler needs of the [`Listener`]: to accept, and to dial next to it.
#[derive(Debug)]
pub struct Door {
    socket: UnixListener,
    path: PathBuf,
}

impl Door {
    /// For epoll.
    pub fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The next host program that waits, as a non-blocking socket.
    ///
    /// # Errors
    /// As `accept(2)`; `WouldBlock` when nobody waits.
    pub fn accept(&self) -> io::Result<UnixStream> {
        let (stream, _) = self.socket.accept()?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// Connects to the socket where the host serves `port`, without ever blocking.
    ///
    /// # Errors
    /// Nobody listens there, or its backlog is full.
    pub fn dial(&self, port: u32) -> io::Result<UnixStream> {
        let address = UnixAddr::new(&port_path(&self.path, port))?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &address)?;
        Ok(UnixStream::from(fd))
    }
}

/// Where the host serves a port that the guest dials.
fn port_path(base: &Path, port: u32) -> PathBuf {
    let mut name = OsString::from(base);
    name.push(format!("_{port}"));
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_file_goes_with_the_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vsock");
        let listener = Listener::bind(path.clone()).unwrap();
        assert!(path.exists());
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_without_room_for_a_port_is_refused() {
        let path = PathBuf::from(format!("/tmp/{}", "x".repeat(100)));
        assert_eq!(
            Listener::bind(path).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}
