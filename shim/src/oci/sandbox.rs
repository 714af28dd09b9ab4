//! Sandboxes: which VM a container is to join, and what a sandbox itself needs in its guest.

use std::path::Path;

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use super::{Context, error::OciError, record::Record, store};

/// Annotations that say what a container is to its sandbox: type, sandbox's id (containerd's pkg/cri/annotations, CRI-O's
/// pkg/annotations).
const SANDBOXES: [(&str, &str); 2] = [
    (
        "io.kubernetes.cri.container-type",
        "io.kubernetes.cri.sandbox-id",
    ),
    (
        "io.kubernetes.cri-o.ContainerType",
        "io.kubernetes.cri-o.SandboxID",
    ),
];

/// The container whose VM this one is to join: by annotation, or by the namespaces of its keeper.
///
/// # Errors
/// There is no such sandbox.
pub fn find(context: &Context, spec: &Spec) -> Result<Option<Record>, OciError> {
    let annotations = spec.annotations().clone().unwrap_or_default();
    for (kind, id) in SANDBOXES {
        if annotations.get(kind).map(String::as_str) != Some("container") {
            continue;
        }
        if let Some(id) = annotations.get(id) {
            return store::look_up(&context.root, id).map(Some);
        }
    }
    let linux = spec.linux().as_ref();
    let namespaces = linux
        .into_iter()
        .flat_map(|l| l.namespaces().iter().flatten());
    let mut pids = namespaces.filter_map(|namespace| pid_of(namespace.path().as_deref()?));
    let Some(pid) = pids.next() else {
        return Ok(None);
    };
    let records = store::all(&context.root)?;
    Ok(records.into_iter().find(|record| is_keeper(record, pid)))
}

/// Whether a container of a VM of its own is the sandbox of a pod, whose process waits for signals in namespaces that the pod
/// can have without it: then that is not made before another container's PID namespace, or an exec, needs it. Whether the
/// pod shares that one is not known any sooner: a sandbox has a PID namespace in either case.
pub fn may_rest(spec: &Spec) -> bool {
    let annotations = spec.annotations().clone().unwrap_or_default();
    let is_sandbox = |kind| annotations.get(kind).map(String::as_str) == Some("sandbox");
    let terminal = spec.process().as_ref().and_then(|p| p.terminal());
    let hooks = spec.hooks().as_ref().is_some_and(|hooks| {
        let guests = [hooks.create_container(), hooks.start_container()];
        guests.into_iter().flatten().any(|hooks| !hooks.is_empty())
    });
    SANDBOXES.iter().any(|(kind, _)| is_sandbox(*kind))
        && terminal != Some(true)
        && !hooks
        && !has_users_of_its_own(spec.linux().as_ref())
}

/// The other namespaces would belong to that one, and so couldn't be the pod's.
fn has_users_of_its_own(linux: Option<&Linux>) -> bool {
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let mut namespaces = namespaces.into_iter().flatten();
    namespaces.any(|namespace| namespace.typ() == LinuxNamespaceType::User)
}

/// Where there is no process to keep them, a sandbox's IPC and UTS namespaces are those that the guest has anyway. Its VM
/// has its hostname.
pub fn give_the_pods_namespaces(spec: &mut Spec) {
    let domainname = spec.domainname().clone();
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    for namespace in linux.namespaces_mut().iter_mut().flatten() {
        if let LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts = namespace.typ() {
            namespace.set_path(Some("pod".into()));
        }
    }
    if let Some(name) = domainname {
        let sysctls = linux.sysctl_mut().get_or_insert_default();
        sysctls.insert("kernel.domainname".into(), name);
    }
}

fn is_keeper(record: &Record, pid: u32) -> bool {
    record
        .keeper
        .is_some_and(|keeper| keeper.pid == pid && keeper.is_alive())
}

/// The process in `/proc/<pid>/ns/<kind>`.
fn pid_of(path: &Path) -> Option<u32> {
    let mut words = path.to_str()?.strip_prefix("/proc/")?.split('/');
    let pid = words.next()?.parse().ok()?;
    (words.next()? == "ns").then_some(pid)
}

/// Names the namespaces of the pod's containers as the agent knows them.
pub fn join_namespaces(spec: &mut Spec, sandbox: &Record, all: &[Record]) {
    let Some(namespaces) = spec
        .linux_mut()
        .as_mut()
        .and_then(|l| l.namespaces_mut().as_mut())
    else {
        return;
    };
    for namespace in namespaces {
        // The network is the pod's, and its namespace on the host the keeper's.
        if namespace.typ() == LinuxNamespaceType::Network {
            continue;
        }
        let Some(path) = namespace.path() else {
            continue;
        };
        let pid = pid_of(path);
        let named = all
            .iter()
            .find(|record| pid.is_some_and(|pid| is_keeper(record, pid)))
            .filter(|record| record.pod == sandbox.pod);
        let id = named.map_or(&sandbox.id, |record| &record.id);
        namespace.set_path(Some(format!("container:{id}").into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sandbox(change: impl FnOnce(&mut serde_json::Value)) -> Spec {
        let mut value = json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["/pause"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "annotations": {"io.kubernetes.cri.container-type": "sandbox"},
            "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
        });
        change(&mut value);
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_a_sandbox_that_needs_nothing_but_the_pods_namespaces_rests() {
        assert!(may_rest(&sandbox(|_| {})));
        assert!(may_rest(&sandbox(|spec| {
            spec["annotations"] = json!({"io.kubernetes.cri-o.ContainerType": "sandbox"});
        })));
        let changes: [fn(&mut serde_json::Value); 4] = [
            |spec| spec["annotations"] = json!({"io.kubernetes.cri.container-type": "container"}),
            |spec| spec["process"]["terminal"] = true.into(),
            |spec| spec["linux"]["namespaces"][0]["type"] = "user".into(),
            |spec| spec["hooks"] = json!({"createContainer": [{"path": "/bin/true"}]}),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(!may_rest(&sandbox(change)), "{number}");
        }
    }

    #[test]
    fn a_sandbox_that_rests_is_in_the_pods_namespaces() {
        let mut spec = sandbox(|spec| spec["domainname"] = "example.org".into());
        give_the_pods_namespaces(&mut spec);
        let linux = serde_json::to_value(spec.linux()).unwrap();
        let expected = json!([{"type": "pid"}, {"type": "ipc", "path": "pod"}, {"type": "uts", "path": "pod"}, {"type": "mount"}]);
        assert_eq!(linux["namespaces"], expected);
        assert_eq!(linux["sysctl"], json!({"kernel.domainname": "example.org"}));
    }

    #[test]
    fn a_process_is_found_in_the_path_of_its_namespace() {
        assert_eq!(pid_of(Path::new("/proc/42/ns/ipc")), Some(42));
        assert_eq!(pid_of(Path::new("/run/netns/x")), None);
        assert_eq!(pid_of(Path::new("/proc/self/ns/ipc")), None);
    }
}
