//! From the config.json that the host sent to the one that the executor gets: checked, and made to fit this guest.

use std::path::PathBuf;

use libcontainer::oci_spec::runtime::{
    Capabilities, Hooks, Linux, LinuxCapabilities, LinuxIdMapping, LinuxNamespaceType,
    LinuxSeccomp, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator, Process, Spec,
};

use crate::cgroup::Cgroup;

/// A container's name that is safe as a file name: `[A-Za-z0-9_.+-]`, 1 to 128 characters, not `.` or `..`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// Checks a name.
    ///
    /// # Errors
    /// It is not one.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
        let fits = (1..=128).contains(&text.len())
            && text.chars().all(good)
            && text != "."
            && text != "..";
        if fits {
            Ok(Self(text.into()))
        } else {
            Err(SpecError::Id(text.chars().take(140).collect()))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a request's JSON can't be run.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The name of a container.
    #[error("{0:?} is not a container id: use 1 to 128 of A-Z a-z 0-9 _ . + -")]
    Id(String),
    /// Not JSON, or a field of the wrong type.
    #[error("config.json: {field}: {message}")]
    Json { field: String, message: String },
    /// A field that must be there.
    #[error("config.json: {0} is missing")]
    Missing(&'static str),
    /// A field with a value that can't be.
    #[error("config.json: {0}")]
    Value(String),
}

fn parse<T: serde::de::DeserializeOwned>(json: &[u8]) -> Result<T, SpecError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| SpecError::Json {
        field: error.path().to_string(),
        message: error.inner().to_string(),
    })
}

/// What the agent makes of a config.json.
#[derive(Debug)]
pub struct Prepared {
    /// The spec for the executor.
    pub spec: Spec,
    /// The guest's user and group ids of its process, which own its stdio.
    pub owner: Owner,
}

/// User and group as the guest's root user namespace sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Checks a config.json and makes it fit this guest (OCI runtime-spec config.md):
/// the cgroup is ours to choose, hooks of the runtime namespace have run on the host, and the terminal is as the host asked.
///
/// # Errors
/// What is wrong with it, by field.
pub fn prepare(json: &[u8], id: &ContainerId, terminal: bool) -> Result<Prepared, SpecError> {
    let mut spec: Spec = parse(json)?;
    if !spec.version().starts_with("1.") {
        return Err(SpecError::Value(format!(
            "ociVersion: {} is not 1.x",
            spec.version()
        )));
    }
    let root = spec.root().as_ref().ok_or(SpecError::Missing("root"))?;
    if !root.path().is_absolute() {
        return Err(SpecError::Value(format!(
            "root.path: {} is not absolute",
            root.path().display()
        )));
    }
    let process = spec
        .process()
        .clone()
        .ok_or(SpecError::Missing("process"))?;
    let process = fit_process(process, terminal)?;
    let mut linux = spec.linux().clone().ok_or(SpecError::Missing("linux"))?;
    linux.set_cgroups_path(Some(Cgroup::spec_path(id)));
    if let Some(seccomp) = linux.seccomp_mut() {
        fit_masked_comparisons(seccomp);
    }
    let owner = owner(&process, &linux);
    let hooks = spec.hooks().as_ref().and_then(container_hooks);
    spec.set_process(Some(process))
        .set_linux(Some(linux))
        .set_hooks(hooks);
    Ok(Prepared { spec, owner })
}

/// Checks the process of an exec (config.md#process).
///
/// # Errors
/// What is wrong with it, by field.
pub fn prepare_process(json: &[u8], terminal: bool) -> Result<Process, SpecError> {
    fit_process(parse(json)?, terminal)
}

fn fit_process(mut process: Process, terminal: bool) -> Result<Process, SpecError> {
    let args = process
        .args()
        .as_ref()
        .ok_or(SpecError::Missing("process.args"))?;
    let program = args.first().ok_or(SpecError::Missing("process.args[0]"))?;
    if program.is_empty() {
        return Err(SpecError::Value("process.args[0]: is empty".into()));
    }
    if args
        .iter()
        .chain(process.env().iter().flatten())
        .any(|word| word.contains('\0'))
    {
        return Err(SpecError::Value(
            "process: args and env can't contain NUL".into(),
        ));
    }
    if !process.cwd().is_absolute() {
        return Err(SpecError::Value(format!(
            "process.cwd: {} is not absolute",
            process.cwd().display()
        )));
    }
    process.set_terminal(Some(terminal));
    // libcontainer takes an explicit false for a reason to install seccomp filters after the capabilities are gone, which fails.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    process.set_capabilities(Some(named_capabilities(process.capabilities().as_ref())));
    Ok(process)
}

/// A set that is not named is empty (config.md#linux-process); libcontainer would leave the agent's, which has them all.
pub fn named_capabilities(named: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(
            named
                .and_then(|named| of(named).clone())
                .unwrap_or_default(),
        )
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding));
    all.set_effective(set(LinuxCapabilities::effective));
    all.set_permitted(set(LinuxCapabilities::permitted));
    all.set_inheritable(set(LinuxCapabilities::inheritable));
    all.set_ambient(set(LinuxCapabilities::ambient));
    all
}

/// OCI's SCMP_CMP_MASKED_EQ has the mask in `value` and the datum in `valueTwo` (config-linux.md#seccomp, as runc and
/// libseccomp); libcontainer 0.7 reads them the other way round, so they are exchanged for it.
fn fit_masked_comparisons(seccomp: &mut LinuxSeccomp) {
    let mut calls = seccomp.syscalls().clone();
    for call in calls.iter_mut().flatten() {
        let mut args = call.args().clone();
        args.iter_mut().flatten().for_each(exchange_mask);
        call.set_args(args);
    }
    seccomp.set_syscalls(calls);
}

fn exchange_mask(arg: &mut LinuxSeccompArg) {
    if arg.op() == LinuxSeccompOperator::ScmpCmpMaskedEq {
        *arg = LinuxSeccompArgBuilder::default()
            .index(arg.index())
            .value(arg.value_two().unwrap_or(0))
            .value_two(arg.value())
            .op(arg.op())
            .build()
            .expect("every field without a default is given");
    }
}

/// prestart, createRuntime, createContainer, poststart and poststop resolve in the runtime's namespace, which is the host's
/// (config.md#posix-platform-hooks); only startContainer names a program of the container.
fn container_hooks(hooks: &Hooks) -> Option<Hooks> {
    let start = hooks.start_container().clone()?;
    let mut kept = Hooks::default();
    kept.set_start_container(Some(start));
    Some(kept)
}

/// Where the ids of a container's process lie in the guest (config-linux.md#user-namespace-mappings).
pub fn owner(process: &Process, linux: &Linux) -> Owner {
    let new_user_namespace = linux
        .namespaces()
        .iter()
        .flatten()
        .any(|n| n.typ() == LinuxNamespaceType::User && n.path().is_none());
    let (uid, gid) = (process.user().uid(), process.user().gid());
    if !new_user_namespace {
        return Owner { uid, gid };
    }
    Owner {
        uid: map(uid, linux.uid_mappings().as_deref().unwrap_or_default()),
        gid: map(gid, linux.gid_mappings().as_deref().unwrap_or_default()),
    }
}

fn map(id: u32, mappings: &[LinuxIdMapping]) -> u32 {
    mappings
        .iter()
        .find(|m| id >= m.container_id() && id - m.container_id() < m.size())
        .map_or(id, |m| m.host_id().saturating_add(id - m.container_id()))
}

/// The root file system of a prepared spec.
pub fn root(spec: &Spec) -> PathBuf {
    spec.root()
        .as_ref()
        .map(|r| r.path().clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn example() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": { "path": "/run/vmbox/shares/vmbox/a/rootfs" },
            "process": { "cwd": "/", "args": ["sh"], "env": ["PATH=/bin"], "user": { "uid": 1000, "gid": 100 }, "noNewPrivileges": false,
                         "capabilities": { "bounding": ["CAP_KILL"] } },
            "linux": { "cgroupsPath": "/system.slice/docker-abc.scope", "namespaces": [{ "type": "pid" }] },
            "hooks": { "prestart": [{ "path": "/usr/bin/nvidia" }], "startContainer": [{ "path": "/bin/hook" }] }
        })
    }

    fn prepared(config: &Value) -> Result<Prepared, SpecError> {
        prepare(
            config.to_string().as_bytes(),
            &ContainerId::parse("a").unwrap(),
            false,
        )
    }

    #[test]
    fn cgroup_is_ours_whatever_the_host_says() {
        let spec = prepared(&example()).unwrap().spec;
        assert_eq!(
            spec.linux().as_ref().unwrap().cgroups_path(),
            &Some(PathBuf::from("/containers/a"))
        );
    }

    #[test]
    fn hooks_of_the_host_are_not_run_in_the_guest() {
        let spec = prepared(&example()).unwrap().spec;
        let hooks = spec.hooks().as_ref().unwrap();
        assert!(hooks.prestart().is_none() && hooks.create_runtime().is_none());
        assert_eq!(hooks.start_container().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn unnamed_capability_sets_are_empty() {
        let spec = prepared(&example()).unwrap().spec;
        let capabilities = spec
            .process()
            .as_ref()
            .unwrap()
            .capabilities()
            .clone()
            .unwrap();
        assert_eq!(capabilities.effective(), &Some(Capabilities::new()));
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn masked_comparisons_reach_libcontainer_as_it_reads_them() {
        let mut config = example();
        config["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            { "names": ["clone"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 0x7e02_0000u32, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ" }] },
            { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 8, "op": "SCMP_CMP_EQ" }] },
        ]});
        let spec = serde_json::to_value(prepared(&config).unwrap().spec).unwrap();
        let args = |n: usize| spec["linux"]["seccomp"]["syscalls"][n]["args"][0].clone();
        assert_eq!(args(0)["value"], 0);
        assert_eq!(args(0)["valueTwo"], 0x7e02_0000u32);
        assert_eq!(args(1)["value"], 8);
    }

    #[test]
    fn a_process_without_capabilities_has_none() {
        let json = json!({ "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 } });
        let process = prepare_process(json.to_string().as_bytes(), false).unwrap();
        let capabilities = process.capabilities().clone().unwrap();
        let none = Some(Capabilities::new());
        assert_eq!(capabilities.bounding(), &none);
        assert_eq!(capabilities.effective(), &none);
        assert_eq!(capabilities.permitted(), &none);
    }

    #[test]
    fn wrong_type_is_reported_with_its_field() {
        let mut config = example();
        config["process"]["args"] = json!("sh");
        let message = prepared(&config).unwrap_err().to_string();
        assert!(message.contains("process.args"), "{message}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for field in ["root", "process", "linux"] {
            let mut config = example();
            config.as_object_mut().unwrap().remove(field);
            let message = prepared(&config).unwrap_err().to_string();
            assert!(message.contains(field), "{message}");
        }
    }

    #[test]
    fn stdio_belongs_to_the_mapped_user() {
        let mut config = example();
        config["linux"]["namespaces"] = json!([{ "type": "user" }]);
        config["linux"]["uidMappings"] =
            json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["gidMappings"] =
            json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
        assert_eq!(
            prepared(&config).unwrap().owner,
            Owner {
                uid: 101_000,
                gid: 200_100
            }
        );
        assert_eq!(
            prepared(&example()).unwrap().owner,
            Owner {
                uid: 1000,
                gid: 100
            }
        );
    }

    #[test]
    fn ids_that_would_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(ContainerId::parse(bad).is_err(), "{bad}");
        }
        assert!(ContainerId::parse("k8s_POD-1.2+x").is_ok());
    }
}
