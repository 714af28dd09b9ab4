//! Docker's resolver, which containers of its own networks find at 127.0.0.11: carried from the guest to the host.
//!
//! Each query in the guest is a connection to the host's port [`RESOLVER_PORT`]. Its first byte says what came: a datagram
//! ([`DATAGRAM`]), as a message with its length before it as DNS over TCP has it (RFC 1035 §4.2.2), answered by one such
//! message; or a connection ([`CONNECTION`]), whose bytes follow, both ways.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Where Docker's containers ask.
pub const RESOLVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 11), 53);
/// The host port that the agent dials for each query.
pub const RESOLVER_PORT: u32 = 1053;
/// A datagram came.
pub const DATAGRAM: u8 = b'u';
/// A connection came.
pub const CONNECTION: u8 = b't';
/// No longer message fits the two bytes of its length.
pub const MESSAGE_MAX: usize = 65535;
/// Queries on their way at the same time; further ones are dropped, and asked again by who waits for them.
pub const QUERIES_MAX: usize = 64;
/// How long an answer may take; the clients' patience is less.
pub const PATIENCE_S: u64 = 15;
