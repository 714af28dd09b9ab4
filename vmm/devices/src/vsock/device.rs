//! The socket device (virtio 1.2 §5.10): its identity, its configuration space, its activation.

use std::io::{self, ErrorKind};
use std::path::PathBuf;

use super::handler::VsockHandler;
use super::listener::Listener;
use super::mux::Mux;
use crate::device::{ActivateError, Activation, Handler, Profile, VirtioDevice, read_bytes};

/// Device id (virtio 1.2 §5.10.1).
const DEVICE_ID: u32 = 19;
/// rx, tx, event (virtio 1.2 §5.10.2). The driver fills rx with 4 KiB buffers, so its length is guest memory:
/// 128 of them hold more than Linux' credit of 256 KiB.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// A socket device whose host side is Unix sockets.
///
/// A guest program that connects to (CID 2, port P) reaches whoever listens on `<socket>_P`. A host program
/// that connects to `<socket>` and writes `CONNECT P\n` reaches the guest program that listens on port P, and reads
/// `OK <its port>\n` first; where none listens, it reads end of file.
///
/// When the guest ends a connection, the host program reads all that the guest has sent and then end of file, or
/// ECONNRESET if the guest has left bytes of it unread.
///
/// Expects SIGPIPE to be ignored, as Rust's runtime does.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u64,
    listener: Listener,
}

impl Vsock {
    /// Listens on `socket`, a path that does not exist yet; it is removed when the device is dropped.
    ///
    /// # Errors
    /// The CID is none that a guest can have (virtio 1.2 §5.10.4: 3 to 2³²−2), or the socket can't be bound.
    pub fn new(guest_cid: u64, socket: PathBuf) -> io::Result<Self> {
        if !(3..u64::from(u32::MAX)).contains(&guest_cid) {
            return Err(io::Error::new(
                ErrorKind::InvalidInput,
                format!("{guest_cid} is not a guest CID"),
            ));
        }
        let listener = Listener::bind(socket)?;
        Ok(Self {
            guest_cid,
            listener,
        })
    }
}

impl VirtioDevice for Vsock {
    fn profile(&self) -> Profile {
        Profile {
            device_id: DEVICE_ID,
            name: "vsock",
            // Without any feature of its own it offers stream sockets (virtio 1.2 §5.10.3).
            features: 0,
            queue_sizes: QUEUE_SIZES.to_vec(),
            shared_memory: Vec::new(),
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        let mux = self
            .listener
            .door()
            .and_then(|door| Mux::new(self.guest_cid, door))
            .map_err(|source| ActivateError::Host {
                what: "vsock: prepare the host side",
                source,
            })?;
        Ok(Box::new(VsockHandler::new(activation, mux)?))
    }
}
