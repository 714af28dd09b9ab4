//! What of a container's limits is the host's to keep: which processors and memory nodes its VM may use, and its weight beside
//! others (config-linux.md#cpu, #block-io). The numbers are the host's, which the guest can't know. All else, the guest keeps.

use std::{fs, io::ErrorKind, path::Path};

use oci_spec::runtime::LinuxResources;

use super::{error::OciError, record::Record};
use crate::pod::size::HOST_ONLY;

/// A value for a file of the container's cgroup.
#[derive(Debug, PartialEq, Eq)]
struct Claim {
    /// Who asks for it.
    field: String,
    file: &'static str,
    value: String,
    /// The host may have no such file: it divides nothing by it then.
    is_optional: bool,
}

impl Claim {
    fn new(field: &str, file: &'static str, value: impl ToString, is_optional: bool) -> Self {
        Self {
            field: format!("linux.resources.{field}"),
            file,
            value: value.to_string(),
            is_optional,
        }
    }

    fn write(&self, cgroup: &Path) -> Result<(), OciError> {
        let path = cgroup.join(self.file);
        match fs::write(&path, &self.value) {
            Err(error) if error.kind() == ErrorKind::NotFound && self.is_optional => Ok(()),
            written => written.map_err(OciError::host(format!(
                "{}: write {} to {}",
                self.field,
                self.value,
                path.display()
            ))),
        }
    }
}

/// Writes what `resources` claim of the host into a cgroup of its.
///
/// # Errors
/// The host has no such processor or memory node, or doesn't divide by it at all.
pub fn apply(cgroup: &Path, resources: &LinuxResources) -> Result<(), OciError> {
    plan(resources)
        .iter()
        .try_for_each(|claim| claim.write(cgroup))
}

/// What of `resources` the container can't have, and why, in words for the user: it has no place on the host of its own.
pub fn without_effect(resources: &LinuxResources, record: &Record) -> Option<String> {
    if record.cgroup.is_some() && !record.joined {
        return None;
    }
    let field = places_the_vm(resources)?;
    Some(format!(
        "{field}: without effect, as this VM is in no cgroup of the container's own"
    ))
}

/// The first field that only a VM of one's own can have, by the whole VM's place on the host.
fn places_the_vm(resources: &LinuxResources) -> Option<String> {
    let mut claims = plan(resources).into_iter();
    claims
        .find(|claim| HOST_ONLY.contains(&claim.file))
        .map(|claim| claim.field)
}

fn plan(resources: &LinuxResources) -> Vec<Claim> {
    let mut claims = Vec::new();
    if let Some(cpu) = resources.cpu() {
        let lists = [
            ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
            ("cpu.mems", "cpuset.mems", cpu.mems()),
        ];
        for (field, file, list) in lists {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                claims.push(Claim::new(field, file, list, false));
            }
        }
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            claims.push(Claim::new("cpu.shares", "cpu.weight", weight(shares), true));
        }
    }
    let io = resources.block_io().as_ref().and_then(|io| io.weight());
    if let Some(io) = io.filter(|weight| *weight != 0) {
        let value = 1 + u64::from(io).saturating_sub(10) * 9999 / 990;
        claims.push(Claim::new("blockIO.weight", "io.weight", value, true));
    }
    let unified = resources.unified().iter().flatten();
    for (name, value) in unified {
        let files = HOST_ONLY.iter().chain(&["cpu.weight", "io.weight"]);
        if let Some(file) = files.copied().find(|file| file == name) {
            let field = format!("unified.{name}");
            let is_optional = !HOST_ONLY.contains(&file);
            claims.push(Claim::new(&field, file, value, is_optional));
        }
    }
    claims
}

/// Shares (2 to 262144, usually 1024) as a weight (1 to 10000, usually 100): as the guest has it, where the agent converts them.
fn weight(shares: u64) -> u64 {
    match shares {
        ..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resources(value: serde_json::Value) -> LinuxResources {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_the_host_divides_is_claimed_of_it() {
        let cgroup = tempfile::tempdir().unwrap();
        let asked = resources(json!({
            "cpu": {"cpus": "0-1", "mems": "0", "shares": 512, "quota": 1000},
            "blockIO": {"weight": 1000}, "memory": {"limit": 1 << 30},
            "unified": {"cpuset.cpus.partition": "member", "memory.high": "1"},
        }));
        apply(cgroup.path(), &asked).unwrap();
        let read = |file| fs::read_to_string(cgroup.path().join(file)).unwrap();
        assert_eq!(
            (read("cpuset.cpus"), read("cpuset.mems")),
            ("0-1".into(), "0".into())
        );
        assert_eq!(
            (read("cpu.weight"), read("io.weight")),
            ("59".into(), "10000".into())
        );
        assert_eq!(fs::read_dir(cgroup.path()).unwrap().count(), 4);
    }

    #[test]
    fn a_host_that_divides_by_no_weight_is_no_failure_but_a_missing_set_is() {
        let gone = Path::new("/no/such/cgroup");
        apply(gone, &resources(json!({"cpu": {"shares": 512}}))).unwrap();
        let sets = resources(json!({"unified": {"cpuset.mems": "0"}}));
        let error = apply(gone, &sets).unwrap_err().to_string();
        assert!(
            error.contains("linux.resources.unified.cpuset.mems"),
            "{error}"
        );
    }

    #[test]
    fn only_sets_say_where_a_vm_is() {
        assert_eq!(
            places_the_vm(&resources(json!({"cpu": {"shares": 512}}))),
            None
        );
        let sets = resources(json!({"cpu": {"shares": 512, "cpus": "1"}}));
        assert_eq!(places_the_vm(&sets).unwrap(), "linux.resources.cpu.cpus");
    }
}
