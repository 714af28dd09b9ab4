//! The network device (virtio 1.2 §5.1): a slot for a NIC, with link down until a back end is put into it.
//!
//! ```text
//!  guest ◄── rx ──┐                     ┌── NicHandle: attach, detach (any thread)
//!                 NetHandler ──► Port ◄─┘
//!  guest ─── tx ──┘              a tap of the host
//! ```
//! Frames pass between guest memory and the port in place. What they hold, headers included, is the guest's business
//! and that of the host's kernel behind the tap: nothing here looks into them.

mod handler;
mod port;
mod rx;
mod slot;

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4,
    VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::device::{ActivateError, Activation, Handler, Profile, VirtioDevice, read_bytes};
use crate::queue::Virtqueue;
use handler::NetHandler;
pub use port::{Offloads, Port};
use slot::Slot;
pub use slot::{NicHandle, Occupied};

/// A MAC address.
pub type Mac = [u8; 6];

/// `struct virtio_net_hdr` with `num_buffers`, which precedes each frame both ways (§5.1.6).
pub const HEADER_BYTES: usize = 12;
/// The longest frame that a port may give: a header, Ethernet's with a VLAN tag, and what an IP packet may be long.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + 18 + 65535;

const DEVICE_ID: u32 = 1;
/// receiveq1 and transmitq1 (§5.1.2).
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZE: u16 = 256;
/// With them a segment of 64 KiB crosses as one frame, and nobody computes checksums of what never leaves the host.
/// There is no control queue: frames for other addresses are the bridge's to keep away, and offloads are decided at
/// activation.
const OFFLOADS: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_HOST_UFO
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_UFO;

/// The device before activation.
pub struct Net {
    mac: Mac,
    mtu: Option<u16>,
    slot: Arc<Slot>,
}

impl Net {
    /// An empty slot, its link down. `mtu`, if there is one, is the most that the guest may set (§5.1.4.1).
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new(mac: Mac, mtu: Option<u16>) -> std::io::Result<Self> {
        Ok(Self {
            mac,
            mtu,
            slot: Arc::new(Slot::new()?),
        })
    }

    /// To be taken before the device is handed to its transport.
    pub fn handle(&self) -> NicHandle {
        NicHandle::new(self.slot.clone())
    }
}

impl VirtioDevice for Net {
    fn profile(&self) -> Profile {
        let always = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_MRG_RXBUF;
        let mtu = u64::from(self.mtu.is_some()) << VIRTIO_NET_F_MTU;
        Profile {
            device_id: DEVICE_ID,
            name: "net",
            features: always | mtu | OFFLOADS,
            queue_sizes: vec![QUEUE_SIZE; 2],
            shared_memory: Vec::new(),
        }
    }

    /// `struct virtio_net_config` (§5.1.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.slot.is_up() {
            VIRTIO_NET_S_LINK_UP as u16
        } else {
            0
        };
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&status.to_le_bytes());
        // max_virtqueue_pairs; read only with VIRTIO_NET_F_MQ, but true all the same.
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_bytes(&config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<Box<dyn Handler>, ActivateError> {
        if let Some(missing) = activation.queues.iter().position(|q| !q.is_enabled()) {
            return Err(ActivateError::QueueMissing(missing));
        }
        let count = activation.queues.len();
        let [rx, tx] = <[Virtqueue; 2]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueMissing(count))?;
        self.slot.set_interrupt(Some(activation.interrupt));
        let handler = NetHandler::new(
            activation.memory,
            activation.features,
            rx,
            tx,
            self.slot.clone(),
        );
        Ok(Box::new(handler))
    }
}

#[cfg(test)]
mod tests;
