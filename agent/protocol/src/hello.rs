//! The greeting: the agent's first line on its connection, and the host's answer.

use serde::{Deserialize, Serialize};

/// The host's context id (virtio 1.2 §5.10.4).
pub const HOST_CID: u32 = 2;
/// The host port that the agent dials when it is ready.
pub const AGENT_PORT: u32 = 1024;
/// The guest port that the agent listens on: each connection is greeted as the dialed one is, then served.
pub const GUEST_PORT: u32 = 1024;
/// Ports of stdio streams are counted up from here by the host.
pub const FIRST_STREAM_PORT: u32 = 0x1000;
/// Raised when an old agent and a new host (or the reverse) would misunderstand each other.
pub const PROTOCOL_VERSION: u32 = 1;
/// No greeting is longer than this.
pub const MAX_LINE: usize = 1024;

/// The agent's first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Always `agent`.
    pub vmbox: String,
    /// Its protocol version.
    pub protocol: u32,
    /// Its build, for messages only.
    pub version: String,
}

/// The host's answer: exactly one of the two is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Welcome {
    /// Serve ttrpc from here on.
    Ok,
    /// Refused, and why.
    Error(String),
}

/// Why a greeting was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The line is not a greeting.
    #[error("the guest's first line is not a vmbox greeting")]
    NotAGreeting(#[source] serde_json::Error),
    /// Versions differ.
    #[error(
        "the agent speaks protocol {agent}, this vmbox speaks {host}: use the guest image that came with this vmbox"
    )]
    Version {
        /// The agent's.
        agent: u32,
        /// Ours.
        host: u32,
    },
}

impl Hello {
    /// What this build's agent says.
    pub fn of_this_build() -> Self {
        Self {
            vmbox: "agent".into(),
            protocol: PROTOCOL_VERSION,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }

    /// Parses and checks the agent's first line.
    ///
    /// # Errors
    /// Not a greeting, or of another protocol version.
    pub fn accept(line: &str) -> Result<Self, HelloError> {
        let hello: Self = serde_json::from_str(line).map_err(HelloError::NotAGreeting)?;
        if hello.protocol != PROTOCOL_VERSION {
            return Err(HelloError::Version {
                agent: hello.protocol,
                host: PROTOCOL_VERSION,
            });
        }
        Ok(hello)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_greeting_is_accepted() {
        let line = serde_json::to_string(&Hello::of_this_build()).unwrap();
        assert_eq!(Hello::accept(&line).unwrap(), Hello::of_this_build());
    }

    #[test]
    fn other_version_is_refused_with_both_numbers() {
        let line = r#"{"vmbox":"agent","protocol":77,"version":"9.9"}"#;
        let message = Hello::accept(line).unwrap_err().to_string();
        assert!(
            message.contains("77") && message.contains(&PROTOCOL_VERSION.to_string()),
            "{message}"
        );
    }

    #[test]
    fn noise_is_not_a_greeting() {
        assert!(matches!(
            Hello::accept("SSH-2.0-OpenSSH"),
            Err(HelloError::NotAGreeting(_))
        ));
    }
}
