//! Messages between the agent and an executor: JSON records, some with file descriptors, on a SOCK_SEQPACKET pair.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    recvmsg, sendmsg, socketpair,
};
use serde::{Serialize, de::DeserializeOwned};

use super::Report;

const MAX_MESSAGE: usize = 16 * 1024;
/// stdin, stdout and stderr.
const MAX_FDS: usize = 3;

/// One end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
}

impl Channel {
    /// Both ends, close-on-exec.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self { socket: ours }, theirs))
    }

    /// The end that an executor was started with.
    pub fn from_fd(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Its descriptor's number, which stays valid in forks of this process.
    pub fn raw(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        send_on(self.socket.as_raw_fd(), message, fds)
    }

    /// The next report and the descriptor that came with it; None at the end.
    pub fn receive(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let Some((report, fds)) = self.receive_any::<Report>()? else {
            return Ok(None);
        };
        Ok(Some((report, fds.into_iter().next())))
    }

    /// The next message and all that came with it; None at the end.
    pub fn receive_any<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MAX_MESSAGE];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let message = loop {
            match recvmsg::<UnixAddr>(
                self.socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::MSG_CMSG_CLOEXEC,
            ) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = item {
                // SAFETY: the kernel has just made these descriptors for us, and nobody else knows of them.
                fds.extend(
                    numbers
                        .into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        let length = message.bytes;
        if length == 0 {
            return Ok(None);
        }
        let value = serde_json::from_slice(bytes.get(..length).unwrap_or_default())?;
        Ok(Some((value, fds)))
    }
}

/// Sends one message on a descriptor that is known by number only, as in a forked process.
pub fn send_on<T: Serialize>(socket: RawFd, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    sendmsg::<UnixAddr>(
        socket,
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{Failure, Request};
    use std::io::Read;
    use std::os::fd::AsFd;

    #[test]
    fn message_and_descriptors_arrive_together() {
        let (ours, theirs) = Channel::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let request = Request::Create {
            id: "a".into(),
            bundle: "/b".into(),
            terminal: false,
            read_only_dev: false,
        };
        ours.send(&request, &[write.as_fd()]).unwrap();
        drop(write);
        let (received, mut fds) = Channel::from_fd(theirs)
            .receive_any::<Request>()
            .unwrap()
            .unwrap();
        assert_eq!(received, request);
        std::io::Write::write_all(&mut std::fs::File::from(fds.remove(0)), b"hi").unwrap();
        let mut text = String::new();
        std::fs::File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }

    #[test]
    fn first_failure_counts_and_the_end_is_seen() {
        let (ours, theirs) = Channel::pair().unwrap();
        let theirs = Channel::from_fd(theirs);
        theirs
            .send(&Report::Failed(Failure::other("cause")), &[])
            .unwrap();
        theirs
            .send(&Report::Failed(Failure::other("consequence")), &[])
            .unwrap();
        drop(theirs);
        assert_eq!(
            super::super::Launch { channel: ours }
                .wait()
                .unwrap_err()
                .message,
            "cause"
        );
    }
}
