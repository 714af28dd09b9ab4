//! A pod's network: the interfaces that an engine has put into a network namespace, carried into the guest.
//!
//! ```text
//!  network namespace of the pod                                      │ guest
//!    eth0 (veth, macvlan, …) ── ingress: redirect ──► vmtap0 ── VMM ─┼─► eth0: same MAC, MTU, addresses, routes
//!          ▲                                             │           │
//!          └───────────────── ingress: redirect ─────────┘           │
//! ```
//! Nothing is taken off the engine's interfaces: their addresses stay where the engine looks for them, and the kernel there
//! never sees a frame, because both redirections come before its protocols (tc-mirred(8)). The VM has a few NICs whose links
//! are down; an interface that appears later gets the next of them.

pub mod follower;
mod mirror;
mod namespace;
mod pod;
mod resolver;
mod rtnetlink;
mod slots;
mod survey;
mod tap;

use std::{io, path::PathBuf};

pub use namespace::{Namespace, NamespaceId, Wanted, wanted};
pub use pod::{Ends, PodNetwork, Watch, undo};
pub use resolver::serve as serve_resolver;

/// NICs of a VM that has a network: interfaces of a pod beyond that number are left out, with a warning.
pub const SLOTS: u8 = 4;

/// Why a pod has no network, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The spec, or the user, asks for the host's own.
    #[error(
        "host network: a VM can't share the network of its host; give the container a network namespace of its own"
    )]
    Host,
    /// The namespace can't be opened or entered.
    #[error("the network namespace {path}")]
    Namespace {
        /// As it was named.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A request to the kernel failed.
    #[error("{step}")]
    Step {
        /// What was being done, and to what.
        step: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another VM has this interface.
    #[error("{interface} is carried into another VM already ({tap} is there)")]
    Taken {
        /// The engine's.
        interface: String,
        /// The other VM's.
        tap: String,
    },
    /// The monitor refused.
    #[error("give {interface} to the VM")]
    Monitor {
        /// The engine's.
        interface: String,
        /// Why.
        #[source]
        source: crate::vm::ControlError,
    },
    /// The agent refused.
    #[error("set the guest's network up")]
    Agent(#[source] crate::guest::AgentError),
    /// The journal can't be written.
    #[error("write the journal")]
    Journal(#[source] io::Error),
}

/// Names the step that an error belongs to.
trait Step<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, NetworkError>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, step: impl FnOnce() -> String) -> Result<T, NetworkError> {
        self.map_err(|source| NetworkError::Step {
            step: step(),
            source,
        })
    }
}
