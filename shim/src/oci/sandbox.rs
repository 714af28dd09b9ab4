//! Which VM a container is to join: what its spec says of its sandbox.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

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

    #[test]
    fn a_process_is_found_in_the_path_of_its_namespace() {
        assert_eq!(pid_of(Path::new("/proc/42/ns/ipc")), Some(42));
        assert_eq!(pid_of(Path::new("/run/netns/x")), None);
        assert_eq!(pid_of(Path::new("/proc/self/ns/ipc")), None);
    }
}
