//! Which capabilities a container holds (capabilities(7)).

/// A name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a capability")]
pub struct NoSuchCapability(String);

/// Docker's default set.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability's name.
pub fn all() -> Vec<String> {
    let both = DEFAULT_CAPABILITIES.iter().chain(OTHER_CAPABILITIES);
    both.map(|name| format!("CAP_{name}")).collect()
}

const OTHER_CAPABILITIES: &[&str] = &[
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "DAC_READ_SEARCH",
    "IPC_LOCK",
    "IPC_OWNER",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "NET_ADMIN",
    "NET_BROADCAST",
    "PERFMON",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// The container's set: Docker's default, what is added, without what is dropped. `CAP_` is optional, `ALL` is all.
///
/// # Errors
/// Not a capability.
pub fn held(add: &[String], drop: &[String]) -> Result<Vec<String>, NoSuchCapability> {
    let mut held: Vec<&str> = DEFAULT_CAPABILITIES.to_vec();
    for name in add {
        match known_capability(name)? {
            None => {
                held = DEFAULT_CAPABILITIES
                    .iter()
                    .chain(OTHER_CAPABILITIES)
                    .copied()
                    .collect()
            }
            Some(capability) if held.contains(&capability) => {}
            Some(capability) => held.push(capability),
        }
    }
    for name in drop {
        match known_capability(name)? {
            // As Docker does: `--cap-drop ALL --cap-add X` leaves X.
            None => held = explicitly_added(add)?,
            Some(capability) => held.retain(|existing| *existing != capability),
        }
    }
    Ok(held.iter().map(|name| format!("CAP_{name}")).collect())
}

fn explicitly_added(add: &[String]) -> Result<Vec<&'static str>, NoSuchCapability> {
    add.iter()
        .filter_map(|name| known_capability(name).transpose())
        .collect()
}

/// `None` is ALL.
fn known_capability(name: &str) -> Result<Option<&'static str>, NoSuchCapability> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if short == "ALL" {
        return Ok(None);
    }
    DEFAULT_CAPABILITIES
        .iter()
        .chain(OTHER_CAPABILITIES)
        .copied()
        .find(|known| *known == short)
        .map(Some)
        .ok_or_else(|| NoSuchCapability(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let default = held(&[], &[]).unwrap();
        assert_eq!(default.len(), 14);
        assert!(!default.contains(&"CAP_SYS_ADMIN".to_owned()));
        assert!(
            held(&words(&["cap_net_admin"]), &[])
                .unwrap()
                .contains(&"CAP_NET_ADMIN".to_owned())
        );
        assert_eq!(
            held(&words(&["KILL"]), &words(&["all"])).unwrap(),
            ["CAP_KILL"]
        );
        assert!(held(&words(&["ROOT"]), &[]).is_err());
    }
}
