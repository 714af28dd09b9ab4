//! The socket device, host side (virtio 1.2 §5.10): guest streams end in Unix sockets of this process.
//!
//! ```text
//! guest app ── AF_VSOCK ── tx ring ─► handler ─► mux ─► link ─► `<socket>_<port>`   (guest dials CID 2)
//!                          rx ring ◄─ handler ◄─ mux ◄─ link ◄─ `<socket>`, CONNECT  (host dials the guest)
//! ```
//!
//! Who knows what, from pure to effect: [`packet`] the 44-byte header · [`connection`] credit and life of one
//! connection · [`buffers`] where a chain's bytes are · [`stream`] one Unix socket and what it did not take
//! yet · [`link`] one connection with its socket · [`listener`] the socket paths ·
//! [`lobby`] the `CONNECT` line · [`mux`] all
//! connections and one epoll · [`handler`] the rings.
//!
//! Memory is bounded by [`mux::MAX_CONNECTIONS`] × [`connection::BUF_ALLOC`]; no queue of packets exists:
//! what a connection still has to say is state, turned into a packet when the guest has a buffer for it.

mod buffers;
mod connection;
mod device;
#[cfg(any(test, feature = "testing"))]
pub mod fuzz;
mod handler;
mod link;
mod listener;
mod lobby;
mod mux;
mod packet;
mod poller;
mod stream;
#[cfg(test)]
mod tests;

pub use device::Vsock;
