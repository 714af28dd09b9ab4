//! Names of pods and containers: parsed once, then safe as a file name, a cgroup name and a host name.

use std::{fmt, str::FromStr};

/// A container's (or pod's) name: 1 to 64 of `[A-Za-z0-9_.-]`, the first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a container name: use 1 to 64 letters, digits, `_`, `.` or `-`, the first a letter or digit"
)]
pub struct BadId(String);

impl ContainerId {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Twelve random hexadecimal digits.
    pub fn random() -> Self {
        let mut bytes = [0u8; 6];
        fill_random(&mut bytes);
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Fills `bytes` from the kernel's random generator.
pub fn fill_random(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("getrandom can't fail on a running system: {error}"),
        }
    }
}

impl FromStr for ContainerId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        let first_is_alphanumeric = text
            .chars()
            .next()
            .is_some_and(|c| c.is_ascii_alphanumeric());
        let all_allowed = text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if first_is_alphanumeric && all_allowed && text.len() <= 64 {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId(text.to_owned()))
        }
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in ["a", "web-1", "k8s.io_pause", "0"] {
            assert_eq!(name.parse::<ContainerId>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-rf",
            "a b",
            "é",
            &"x".repeat(65),
        ] {
            assert!(name.parse::<ContainerId>().is_err(), "{name}");
        }
    }

    #[test]
    fn random_names_are_names() {
        let id = ContainerId::random();
        assert_eq!(id.as_str().parse::<ContainerId>().unwrap(), id);
        assert_ne!(id, ContainerId::random());
    }
}
