//! A tap of the host as a NIC's port: whole frames between its queue and guest memory by readv(2) and writev(2).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vm_memory::VolatileSlice;
use vmbox_devices::net::{HEADER_BYTES, Offloads, Port};

/// What readv(2) and writev(2) take at once.
const PIECES_MAX: usize = libc::UIO_MAXIOV as usize;

/// A tap with `IFF_NO_PI` and `IFF_VNET_HDR`.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
}

impl Tap {
    /// Takes over a descriptor that the host library has made.
    ///
    /// # Errors
    /// It is no such tap.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        if !is_tap(&fd)? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is no tap with IFF_NO_PI and IFF_VNET_HDR",
            ));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        set(&fd, libc::TUNSETVNETHDRSZ, HEADER_BYTES as libc::c_int)?;
        set(&fd, libc::TUNSETVNETLE, 1)?;
        Ok(Self { fd })
    }
}

impl Port for Tap {
    fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bits = [
            (offloads.checksum, libc::TUN_F_CSUM),
            (offloads.tso4, libc::TUN_F_TSO4),
            (offloads.tso6, libc::TUN_F_TSO6),
            (offloads.ecn, libc::TUN_F_TSO_ECN),
            (offloads.ufo, libc::TUN_F_UFO),
        ];
        let set: libc::c_uint = bits
            .iter()
            .filter(|(wanted, _)| *wanted)
            .map(|(_, bit)| *bit)
            .sum();
        // SAFETY: TUNSETOFFLOAD takes its argument by value, and touches no memory of ours.
        let result = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(set),
            )
        };
        nix::errno::Errno::result(result).map(drop)?;
        Ok(())
    }

    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
        let guards: Vec<_> = pieces.iter().map(VolatileSlice::ptr_guard).collect();
        let vectors: Vec<libc::iovec> = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast_mut().cast(),
                iov_len: guard.len(),
            })
            .collect();
        let count = vectors.len().min(PIECES_MAX) as libc::c_int;
        // SAFETY: each vector is mapped guest memory (or memory borrowed by a slice) which its guard keeps; writev only reads
        // it, and to the kernel it doesn't matter that the guest changes it meanwhile.
        let sent = unsafe { libc::writev(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        nix::errno::Errno::result(sent).map(drop)?;
        Ok(())
    }

    fn receive(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let guards: Vec<_> = pieces.iter().map(VolatileSlice::ptr_guard_mut).collect();
        let vectors: Vec<libc::iovec> = guards
            .iter()
            .map(|guard| libc::iovec {
                iov_base: guard.as_ptr().cast(),
                iov_len: guard.len(),
            })
            .collect();
        let count = vectors.len().min(PIECES_MAX) as libc::c_int;
        // SAFETY: as above; volatile slices are writable, and no reference to their bytes exists.
        let received = unsafe { libc::readv(self.fd.as_raw_fd(), vectors.as_ptr(), count) };
        Ok(nix::errno::Errno::result(received)? as usize)
    }
}

fn is_tap(fd: &OwnedFd) -> io::Result<bool> {
    // SAFETY: an ifreq is plain numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq, which is there for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    match nix::errno::Errno::result(result) {
        Ok(_) => {}
        // No tun descriptor, or one without an interface.
        Err(nix::errno::Errno::ENOTTY | nix::errno::Errno::EBADFD | nix::errno::Errno::EINVAL) => {
            return Ok(false);
        }
        Err(error) => return Err(error.into()),
    }
    // SAFETY: TUNGETIFF fills in the flags, and any bytes are valid ones.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    Ok(flags & wanted == wanted)
}

fn set(fd: &OwnedFd, request: libc::Ioctl, value: libc::c_int) -> io::Result<()> {
    // SAFETY: these requests read one int, which is there for the call.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw const value) };
    nix::errno::Errno::result(result).map(drop)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_is_no_tap_is_refused() {
        let file = File::open("/dev/null").unwrap();
        let error = Tap::adopt(file.into()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
