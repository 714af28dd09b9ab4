//! Namespaces of a container, new or another's (OCI runtime-spec config-linux.md#namespaces), and the sysctls in them.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use libcontainer::oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, Spec};

use super::SpecError;

/// The first process of a container of the pod that has not stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// Its id.
    Pid(u32),
    /// There is none so far, as nothing has needed it; it would be in the pod's IPC, UTS and network namespaces.
    Resting,
}

/// Finds it.
pub type FindInit<'a> = &'a dyn Fn(&str) -> Option<Init>;

/// The containers whose first process a container needs, to be in namespaces that end with that.
///
/// # Errors
/// It is no config.json.
pub fn needed(json: &[u8]) -> Result<BTreeSet<String>, SpecError> {
    let spec: Spec = super::parse(json)?;
    let namespaces = spec
        .linux()
        .iter()
        .flat_map(|l| l.namespaces().iter().flatten());
    let ending = namespaces.filter(|namespace| !is_kept(namespace.typ()));
    let ids = ending.filter_map(|n| path(n)?.strip_prefix("container:").map(str::to_owned));
    Ok(ids.collect())
}

/// Whether a container whose process rests has it all the same: the pod's.
fn is_kept(kind: LinuxNamespaceType) -> bool {
    use LinuxNamespaceType::{Ipc, Network, Uts};
    matches!(kind, Ipc | Network | Uts)
}

/// Turns `container:ID` into paths of this guest's /proc and leaves out the `pod`'s namespaces, which every process has anyway.
///
/// # Errors
/// A namespace that can't be had, by its number.
pub fn fit(linux: &mut Linux, find: FindInit<'_>) -> Result<(), SpecError> {
    let mut seen = BTreeSet::new();
    let mut fitted = Vec::new();
    let listed = linux.namespaces().clone().unwrap_or_default();
    for (number, mut namespace) in listed.into_iter().enumerate() {
        let kind = name(namespace.typ());
        let error = |why: String| SpecError::Value(format!("linux.namespaces[{number}]: {why}"));
        if !seen.insert(kind) {
            return Err(error(format!("{kind} is named twice")));
        }
        match path(&namespace) {
            None => fitted.push(namespace),
            Some(path) if kind == "mount" => {
                let why = format!("{path:?}: a container can't join another's mounts");
                return Err(error(why));
            }
            Some(path) if path == "pod" => {}
            Some(path) => {
                let Some(id) = path.strip_prefix("container:") else {
                    let why = format!("{path:?} is neither container:ID nor pod");
                    return Err(error(why));
                };
                let pid = match find(id) {
                    Some(Init::Pid(pid)) => pid,
                    Some(Init::Resting) if is_kept(namespace.typ()) => continue,
                    Some(Init::Resting) => {
                        return Err(error(format!("container {id:?} has no process")));
                    }
                    None => return Err(error(format!("no container {id:?} runs in this pod"))),
                };
                namespace.set_path(Some(PathBuf::from(format!(
                    "/proc/{pid}/ns/{}",
                    file(kind)
                ))));
                fitted.push(namespace);
            }
        }
    }
    linux.set_namespaces(Some(fitted));
    if !has(linux, LinuxNamespaceType::Mount) {
        let why = "linux.namespaces: without a mount namespace of its own a container would change the agent's mounts";
        return Err(SpecError::Value(why.into()));
    }
    fit_user(linux)?;
    fit_time(linux)
}

fn path(namespace: &LinuxNamespace) -> Option<String> {
    let path = namespace.path().as_ref()?.display().to_string();
    (!path.is_empty()).then_some(path)
}

fn name(kind: LinuxNamespaceType) -> &'static str {
    match kind {
        LinuxNamespaceType::Mount => "mount",
        LinuxNamespaceType::Cgroup => "cgroup",
        LinuxNamespaceType::Uts => "uts",
        LinuxNamespaceType::Ipc => "ipc",
        LinuxNamespaceType::User => "user",
        LinuxNamespaceType::Pid => "pid",
        LinuxNamespaceType::Network => "network",
        LinuxNamespaceType::Time => "time",
    }
}

/// Its name in /proc/PID/ns.
fn file(kind: &str) -> &str {
    match kind {
        "network" => "net",
        "mount" => "mnt",
        other => other,
    }
}

fn find(linux: &Linux, kind: LinuxNamespaceType) -> Option<&LinuxNamespace> {
    linux
        .namespaces()
        .iter()
        .flatten()
        .find(|n| n.typ() == kind)
}

/// Whether it is in one that is not the agent's, new or another container's.
pub fn has(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    find(linux, kind).is_some()
}

/// Whether it gets one of its own, which nobody else is in.
pub fn is_new(linux: &Linux, kind: LinuxNamespaceType) -> bool {
    find(linux, kind).is_some_and(|namespace| path(namespace).is_none())
}

fn fit_user(linux: &Linux) -> Result<(), SpecError> {
    let count = |mappings: &Option<Vec<_>>| mappings.as_ref().map_or(0, Vec::len);
    let (uids, gids) = (count(linux.uid_mappings()), count(linux.gid_mappings()));
    let new = is_new(linux, LinuxNamespaceType::User);
    for (field, count) in [("uidMappings", uids), ("gidMappings", gids)] {
        if new && count == 0 {
            let why = format!("linux.{field}: a new user namespace needs at least one");
            return Err(SpecError::Value(why));
        }
        if count > 0 && !has(linux, LinuxNamespaceType::User) {
            let why = format!("linux.{field}: without a user namespace there is nothing to map");
            return Err(SpecError::Value(why));
        }
    }
    Ok(())
}

fn fit_time(linux: &Linux) -> Result<(), SpecError> {
    let Some(offsets) = linux.time_offsets().as_ref().filter(|o| !o.is_empty()) else {
        return Ok(());
    };
    if !is_new(linux, LinuxNamespaceType::Time) {
        let why = "linux.timeOffsets: need a new time namespace";
        return Err(SpecError::Value(why.into()));
    }
    match offsets
        .keys()
        .find(|clock| !["monotonic", "boottime"].contains(&clock.as_str()))
    {
        Some(clock) => Err(SpecError::Value(format!(
            "linux.timeOffsets.{clock}: is neither monotonic nor boottime"
        ))),
        None => Ok(()),
    }
}

/// hostname and domainname are for a UTS namespace that is made for the container; who joins one takes its names.
///
/// # Errors
/// A name without a namespace for it.
pub fn fit_names(spec: &mut Spec, asked: &Linux) -> Result<(), SpecError> {
    if has(
        spec.linux().as_ref().unwrap_or(asked),
        LinuxNamespaceType::Uts,
    ) {
        return Ok(());
    }
    let joins_the_pods = has(asked, LinuxNamespaceType::Uts);
    for (field, set) in [
        ("hostname", spec.hostname().is_some()),
        ("domainname", spec.domainname().is_some()),
    ] {
        if set && !joins_the_pods {
            let why = format!("{field}: needs a UTS namespace (linux.namespaces)");
            return Err(SpecError::Value(why));
        }
    }
    spec.set_hostname(None).set_domainname(None);
    Ok(())
}

/// What System V IPC has in an IPC namespace; with fs.mqueue.*, all that is in one.
const IPC: &[&str] = &[
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Sysctls of the pod's namespaces, for the agent to set; the others stay in the spec for the executor. Only those that belong to a
/// namespace can be set at all (config-linux.md#sysctl).
///
/// The pod's network namespace counts as the container's, as no other pod is in it.
///
/// # Errors
/// A sysctl that is the machine's, or of a namespace that the container does not have.
pub fn take_pod_sysctls(
    linux: &mut Linux,
    asked: &Linux,
) -> Result<Vec<(String, String)>, SpecError> {
    let all = linux.sysctl().clone().unwrap_or_default();
    let mut own = HashMap::new();
    let mut pods = Vec::new();
    for (name, value) in all {
        let dotted = name.replace('/', ".");
        let refuse = |why: &str| Err(SpecError::Value(format!("linux.sysctl.{name}: {why}")));
        let kind = match dotted.as_str() {
            name if name.starts_with("net.") => LinuxNamespaceType::Network,
            name if name.starts_with("fs.mqueue.") || IPC.contains(&name) => {
                LinuxNamespaceType::Ipc
            }
            "kernel.domainname" => LinuxNamespaceType::Uts,
            "kernel.hostname" => return refuse("is set by the field hostname"),
            name if name.starts_with("user.") => LinuxNamespaceType::User,
            _ => return refuse("belongs to the whole guest, not to a namespace"),
        };
        if dotted.split('.').any(str::is_empty) || !dotted.is_ascii() {
            return refuse("is no name of a sysctl");
        }
        if has(linux, kind) {
            own.insert(name, value);
        } else if kind == LinuxNamespaceType::Network || has(asked, kind) {
            pods.push((name, value));
        } else {
            return refuse("needs a namespace of its own (linux.namespaces)");
        }
    }
    pods.sort();
    linux.set_sysctl((!own.is_empty()).then_some(own));
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn linux(value: Value) -> Linux {
        serde_json::from_value(value).unwrap()
    }

    fn fitted(namespaces: Value) -> Result<Value, String> {
        let mut linux = linux(json!({ "namespaces": namespaces }));
        let find = |id: &str| match id {
            "web" => Some(Init::Pid(17)),
            "resting" => Some(Init::Resting),
            _ => None,
        };
        fit(&mut linux, &find).map_err(|e| e.to_string())?;
        Ok(serde_json::to_value(linux.namespaces()).unwrap())
    }

    #[test]
    fn anothers_namespace_is_found_by_its_containers_name() {
        let namespaces = json!([{ "type": "mount" }, { "type": "network", "path": "container:web" }, { "type": "ipc", "path": "pod" }]);
        assert_eq!(
            fitted(namespaces).unwrap(),
            json!([{ "type": "mount" }, { "type": "network", "path": "/proc/17/ns/net" }])
        );
    }

    #[test]
    fn a_sandbox_that_rests_lends_the_pods_namespaces() {
        let of = |kind: &str| json!([{ "type": "mount" }, { "type": kind, "path": "container:resting" }]);
        let none = json!([{ "type": "mount" }]);
        for kind in ["ipc", "uts", "network"] {
            assert_eq!(fitted(of(kind)).unwrap(), none, "{kind}");
        }
        for kind in ["pid", "user", "cgroup"] {
            assert!(
                fitted(of(kind)).unwrap_err().contains("no process"),
                "{kind}"
            );
        }
    }

    #[test]
    fn a_process_is_needed_for_what_ends_with_it() {
        let spec = json!({ "ociVersion": "1.2.0", "linux": { "namespaces": [
            { "type": "ipc", "path": "container:a" }, { "type": "pid", "path": "container:b" }, { "type": "uts" },
            { "type": "cgroup", "path": "container:b" }, { "type": "user", "path": "pod" },
        ] } });
        let needed = needed(spec.to_string().as_bytes()).unwrap();
        assert_eq!(needed.into_iter().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_namespace_that_can_not_be_had_is_named() {
        let second = |namespace: Value| {
            let error = fitted(json!([{ "type": "mount" }, namespace])).unwrap_err();
            assert!(error.contains("linux.namespaces[1]"), "{error}");
            error
        };
        assert!(second(json!({ "type": "ipc", "path": "container:db" })).contains("db"));
        assert!(second(json!({ "type": "ipc", "path": "/proc/1/ns/ipc" })).contains("/proc/1"));
        assert!(second(json!({ "type": "mount" })).contains("twice"));
        assert!(
            fitted(json!([{ "type": "pid" }]))
                .unwrap_err()
                .contains("mount")
        );
    }

    #[test]
    fn mappings_and_user_namespace_need_each_other() {
        let check = |value| fit(&mut linux(value), &|_| None).map_err(|e| e.to_string());
        let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 1 }]);
        let new = json!([{ "type": "mount" }, { "type": "user" }]);
        assert!(
            check(json!({ "namespaces": new, "uidMappings": map, "gidMappings": map })).is_ok()
        );
        let error = check(json!({ "namespaces": new, "uidMappings": map })).unwrap_err();
        assert!(error.contains("linux.gidMappings"), "{error}");
        let error =
            check(json!({ "namespaces": [{ "type": "mount" }], "uidMappings": map })).unwrap_err();
        assert!(error.contains("linux.uidMappings"), "{error}");
    }

    #[test]
    fn offsets_need_a_clock_and_a_namespace_for_it() {
        let check = |value| fit(&mut linux(value), &|_| None).map_err(|e| e.to_string());
        let offsets = |clock: &str| json!({ clock: { "secs": 5 } });
        let time = json!([{ "type": "mount" }, { "type": "time" }]);
        assert!(check(json!({ "namespaces": time, "timeOffsets": offsets("boottime") })).is_ok());
        assert!(check(json!({ "namespaces": time, "timeOffsets": offsets("realtime") })).is_err());
        let none = json!([{ "type": "mount" }]);
        assert!(check(json!({ "namespaces": none, "timeOffsets": offsets("boottime") })).is_err());
    }

    #[test]
    fn sysctls_go_to_whose_namespace_they_are_in() {
        let asked = linux(json!({ "namespaces": [{ "type": "ipc" }],
            "sysctl": { "net.core.somaxconn": "9", "kernel.shmmax": "1", "fs/mqueue/msg_max": "2" } }));
        let mut own = asked.clone();
        let pods = take_pod_sysctls(&mut own, &asked).unwrap();
        assert_eq!(pods, [("net.core.somaxconn".to_owned(), "9".to_owned())]);
        assert_eq!(own.sysctl().as_ref().unwrap().len(), 2);
    }

    #[test]
    fn the_machines_sysctls_are_refused_by_name() {
        for name in [
            "vm.swappiness",
            "kernel.hostname",
            "kernel.shmmax",
            "net..x",
            "net/../../kernel/core_pattern",
        ] {
            let asked = linux(json!({ "namespaces": [], "sysctl": { name: "1" } }));
            let error = take_pod_sysctls(&mut asked.clone(), &asked)
                .unwrap_err()
                .to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
