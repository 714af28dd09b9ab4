//! The agent in the guest: its greeting, the calls we make to it, and the relay that lets others of the same pod call it.

mod agent;
mod calls;
mod greeting;
mod relay;

pub(crate) use agent::CALL;
pub use agent::{Agent, AgentError, Exit, delete_container};
pub use greeting::{Greeter, GreetingError, dial};
pub use relay::serve as serve_relay;
