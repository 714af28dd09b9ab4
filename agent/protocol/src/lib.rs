//! The one contract between host and guest: ttrpc services, vsock ports, and the greeting with its version check.
//!
//! ```text
//! guest                                   host
//!   connect vsock CID 2, port 1024  ────►  (Unix socket <vsock>_1024)
//!   {"vmbox":"agent","protocol":1}\n ───►  checks the version, sends back {"ok":true}\n or {"error":"…"}\n
//!   ◄───────────────────────────────────  ttrpc requests on the same connection
//!   ◄───────────────────────────────────  ttrpc requests on further connections, to the guest's port 1024, each greeted too
//! ```
//! The guest ends with the first connection, unless `SetupRequest.lasting` says that it is to outlive it.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod hello;
pub mod keeper;
mod nic;
pub mod resolver;
pub use hello::{
    AGENT_PORT, FIRST_STREAM_PORT, GUEST_PORT, HOST_CID, Hello, HelloError, MAX_LINE,
    PROTOCOL_VERSION, Welcome,
};
pub use nic::{SLOT_MAC_PREFIX, slot_mac};

#[allow(clippy::all, clippy::pedantic, clippy::unwrap_used, missing_docs)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/modules.rs"));
}
pub use generated::{agent, agent_ttrpc};
