//! What a container finds in its cgroup on the host, if that is there before it (runc's libcontainer/factory_linux.go).

use std::{fs, path::Path};

use super::{cgroup, error::OciError};

/// How many processes are in a cgroup already; none if there is no such cgroup.
///
/// # Errors
/// It is frozen, by itself or from above (cgroup-v2.rst, "cgroup.events"): the VM would stand still before it began.
pub fn processes_in(dir: &Path) -> Result<usize, OciError> {
    let events = fs::read_to_string(dir.join("cgroup.events")).unwrap_or_default();
    if events.lines().any(|line| line == "frozen 1") {
        return Err(OciError::Refused(
            "container's cgroup unexpectedly frozen".into(),
        ));
    }
    Ok(cgroup::processes(dir).len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(events: &str, processes: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.events"), events).unwrap();
        fs::write(dir.path().join("cgroup.procs"), processes).unwrap();
        dir
    }

    #[test]
    fn processes_that_are_there_are_counted() {
        let dir = cgroup("populated 1\nfrozen 0\n", "7\n42\n");
        assert_eq!(processes_in(dir.path()).unwrap(), 2);
        assert_eq!(processes_in(&dir.path().join("none")).unwrap(), 0);
    }

    #[test]
    fn a_frozen_cgroup_is_refused_in_runcs_words() {
        let dir = cgroup("populated 0\nfrozen 1\n", "");
        let error = processes_in(dir.path()).unwrap_err().to_string();
        assert_eq!(error, "container's cgroup unexpectedly frozen");
    }
}
