//! What is at the other end of the wire: a tap of the host's, or a test.

use std::io;
use std::os::fd::RawFd;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO,
};
use vm_memory::VolatileSlice;

/// Sends and receives Ethernet frames, each preceded by a `virtio_net_hdr` of [`super::HEADER_BYTES`] bytes, little-endian.
/// The monitor implements it, because scattered reads and writes of guest memory take unsafe code. Called on the worker
/// thread; may not block.
pub trait Port: Send + Sync {
    /// Readable when a frame waits, or when the port has come to its end. Open as long as the port exists.
    fn fd(&self) -> RawFd;

    /// Which frames [`Port::receive`] may give from now on. Called before its first call, and again after each reset of the
    /// device.
    ///
    /// # Errors
    /// The port is no use any more.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;

    /// Sends one frame, the concatenation of `pieces`, which the guest may change meanwhile.
    ///
    /// # Errors
    /// It is lost.
    fn send(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<()>;

    /// Receives one frame into `pieces`, one after the other; returns its length. What has no room is lost.
    ///
    /// # Errors
    /// `WouldBlock`: there is none. Anything else: the port has come to its end.
    fn receive(&self, pieces: &[VolatileSlice<'_>]) -> io::Result<usize>;
}

/// What the guest takes off the host: with none of these, only whole packets with complete checksums (§5.1.6.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums.
    pub checksum: bool,
    /// TCP over IPv4 segments larger than the MTU.
    pub tso4: bool,
    /// TCP over IPv6 segments larger than the MTU.
    pub tso6: bool,
    /// Such segments with congestion notification.
    pub ecn: bool,
    /// UDP datagrams larger than the MTU.
    pub ufo: bool,
}

impl Offloads {
    /// Of the features that both sides agreed on. The later ones depend on the earlier (§5.1.3.1), whatever the driver says.
    pub(super) fn of(features: u64) -> Self {
        let has = |bit: u32| features & (1 << bit) != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksum && has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksum && has(VIRTIO_NET_F_GUEST_TSO6);
        Self {
            checksum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN),
            ufo: checksum && has(VIRTIO_NET_F_GUEST_UFO),
        }
    }
}
