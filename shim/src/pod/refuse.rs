//! What a spec asks for that a guest can't give: refused by the field's name, or, for the labels that engines add of
//! their own accord on hosts with AppArmor or SELinux, left out and told.
//!
//! runtime-spec config.md#valid-values: what is unsupported must be an error. A label is for the host's kernel, which a
//! container in a VM never talks to. The engines' default labels exist to keep a container away from that kernel, which the
//! VM does; so leaving them out takes nothing from anybody. A label that a user chose says something about what is inside
//! the guest (which files, which calls), and nothing there would enforce it: that is refused.

use oci_spec::runtime::{
    Linux, LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, Process, Spec,
};

use super::design::DesignError;

/// What Docker, Podman, CRI-O, containerd's CRI plugin and nerdctl name when nobody chose a profile; up to the `*`.
const DEFAULT_PROFILES: &[&str] = &[
    "docker-default",
    "containers-default-*",
    "crio-default",
    "cri-containerd.apparmor.d",
    "nerdctl-default",
];

/// The SELinux types that the engines' policy package (container-selinux) gives when nobody chose one: of processes, of
/// those without confinement, and of files.
const DEFAULT_TYPES: &[&str] = &[
    "container_t",
    "container_init_t",
    "container_kvm_t",
    "svirt_lxc_net_t",
    "spc_t",
    "unconfined_t",
    "container_file_t",
    "container_ro_file_t",
    "svirt_sandbox_file_t",
];

/// Mount options that are labels (mount(8), section "Filesystem-independent mount options").
const LABEL_OPTIONS: &[&str] = &["context=", "fscontext=", "defcontext=", "rootcontext="];

/// Refuses a spec with a field that no guest can apply, naming it.
///
/// # Errors
/// The first such field, or a required one that is missing.
pub fn unsupported(spec: &Spec) -> Result<(), DesignError> {
    let process = spec
        .process()
        .as_ref()
        .ok_or(DesignError::Missing("process"))?;
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(DesignError::Missing("process.args"));
    }
    hooks(spec)?;
    other_platforms(spec)?;
    spec.linux().as_ref().map_or(Ok(()), linux)
}

fn refuse<T>(what: impl Into<String>) -> Result<T, DesignError> {
    Err(DesignError::Unsupported(what.into()))
}

fn hooks(spec: &Spec) -> Result<(), DesignError> {
    let Some(hooks) = spec.hooks() else {
        return Ok(());
    };
    // createContainer and startContainer are the guest's.
    let lists = [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.poststart(),
        hooks.poststop(),
    ];
    if lists.into_iter().flatten().any(|list| !list.is_empty()) {
        return refuse("hooks: those of the host are run by `vmbox create`");
    }
    Ok(())
}

fn other_platforms(spec: &Spec) -> Result<(), DesignError> {
    let sections = [
        ("windows", spec.windows().is_some()),
        ("solaris", spec.solaris().is_some()),
        ("zos", spec.zos().is_some()),
    ];
    if let Some((name, _)) = sections.into_iter().find(|(_, given)| *given) {
        return refuse(format!("{name}: this container is not for Linux"));
    }
    if spec.vm().is_some() {
        return refuse("vm: kernel and image are chosen by --kernel and --initrd");
    }
    Ok(())
}

fn linux(linux: &Linux) -> Result<(), DesignError> {
    let host_only = [
        (
            "linux.intelRdt",
            linux.intel_rdt().is_some(),
            "cache and memory bandwidth are the host's to divide",
        ),
        (
            "linux.memoryPolicy",
            linux.memory_policy().is_some(),
            "the guest has none of the host's memory nodes",
        ),
        (
            "linux.netDevices",
            linux
                .net_devices()
                .as_ref()
                .is_some_and(|all| !all.is_empty()),
            "a network device of the host can't be moved into a guest",
        ),
        (
            "linux.resources.rdma",
            linux
                .resources()
                .as_ref()
                .and_then(|resources| resources.rdma().as_ref())
                .is_some_and(|all| !all.is_empty()),
            "the guest has no RDMA device",
        ),
    ];
    if let Some((field, _, why)) = host_only.into_iter().find(|(_, given, _)| *given) {
        return refuse(format!("{field}: {why}"));
    }
    for namespace in linux.namespaces().iter().flatten() {
        // What is not absolute is in the protocol's words (`container:ID`, `pod`), and the agent's to judge.
        if let Some(path) = namespace.path()
            && path.is_absolute()
            && namespace.typ() != LinuxNamespaceType::Network
        {
            return refuse(format!(
                "linux.namespaces: the {} namespace {} is the host's and can't be joined from a guest",
                namespace.typ(),
                path.display()
            ));
        }
    }
    linux.seccomp().as_ref().map_or(Ok(()), seccomp)
}

/// The process that decides about a call has the container's calls sent to it as a descriptor, which can't leave a VM. One that
/// listens at `listenerPath` for calls that no rule sends to it would hear nothing anywhere.
fn seccomp(seccomp: &LinuxSeccomp) -> Result<(), DesignError> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    let mut rules = seccomp.syscalls().iter().flatten();
    if seccomp.default_action() == notify || rules.any(|rule| rule.action() == notify) {
        return refuse(
            "linux.seccomp: SCMP_ACT_NOTIFY: calls in a guest can't be decided on the host",
        );
    }
    Ok(())
}

/// Takes the labels of a whole spec out, those of its process too; what was left out, in words for the user.
///
/// # Errors
/// One of them was chosen by the user.
pub fn take_labels(spec: &mut Spec) -> Result<Vec<String>, DesignError> {
    let mut left_out = Vec::new();
    if let Some(process) = spec.process_mut() {
        left_out.append(&mut take_process_labels(process)?);
    }
    if let Some(linux) = spec.linux_mut() {
        let label = linux.mount_label().clone().unwrap_or_default();
        left_out.extend(selinux("linux.mountLabel", &label)?);
        linux.set_mount_label(None);
    }
    for mount in spec.mounts_mut().iter_mut().flatten() {
        let Some(options) = mount.options_mut() else {
            continue;
        };
        for option in options.iter() {
            if let Some(label) = label_option(option) {
                // One more line for each mount would tell nothing new: mountLabel is the same label.
                selinux("mounts.options", label)?;
            }
        }
        options.retain(|option| label_option(option).is_none());
    }
    Ok(left_out)
}

fn label_option(option: &str) -> Option<&str> {
    let value = LABEL_OPTIONS
        .iter()
        .find_map(|name| option.strip_prefix(name))?;
    Some(value.trim_matches('"'))
}

/// Takes the labels of one process out, as [`take_labels`]; for `exec`, whose process has no spec around it.
///
/// # Errors
/// One of them was chosen by the user.
pub fn take_process_labels(process: &mut Process) -> Result<Vec<String>, DesignError> {
    let profile = process.apparmor_profile().clone().unwrap_or_default();
    let label = process.selinux_label().clone().unwrap_or_default();
    let mut left_out = apparmor(&profile)?;
    left_out.extend(selinux("process.selinuxLabel", &label)?);
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    Ok(left_out)
}

fn apparmor(profile: &str) -> Result<Vec<String>, DesignError> {
    let is_default = |known: &&str| match known.strip_suffix('*') {
        Some(start) => profile.starts_with(start),
        None => profile == *known,
    };
    match profile {
        "" | "unconfined" => Ok(Vec::new()),
        _ if DEFAULT_PROFILES.iter().any(is_default) => Ok(vec![format!(
            "process.apparmorProfile: {profile} is left out: it is for the host's kernel, from which the VM keeps the container"
        )]),
        _ => refuse(format!(
            "process.apparmorProfile: {profile} can't be applied: the guest kernel has no AppArmor"
        )),
    }
}

/// A label is `user:role:type[:level]` (selinux(8)).
fn selinux(field: &str, label: &str) -> Result<Vec<String>, DesignError> {
    match label.split(':').nth(2) {
        _ if label.is_empty() => Ok(Vec::new()),
        Some(kind) if DEFAULT_TYPES.contains(&kind) => Ok(vec![format!(
            "{field}: {label} is left out: it is for the host's kernel, from which the VM keeps the container"
        )]),
        _ => refuse(format!(
            "{field}: {label} can't be applied: the guest kernel has no SELinux"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(field: &str, value: Value) -> Spec {
        let mut spec = json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "linux": {"resources": {}},
        });
        let (parent, name) = field.rsplit_once('/').unwrap();
        spec.pointer_mut(parent).unwrap()[name] = value;
        serde_json::from_value(spec).unwrap()
    }

    #[track_caller]
    fn refusal(field: &str, value: Value) -> String {
        unsupported(&spec(field, value)).unwrap_err().to_string()
    }

    #[test]
    fn what_no_guest_can_do_is_refused_by_its_name() {
        for (field, value, named) in [
            ("/linux/intelRdt", json!({"closID": "a"}), "linux.intelRdt"),
            ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
            (
                "/linux/resources/rdma",
                json!({"mlx5_1": {"hcaHandles": 3}}),
                "linux.resources.rdma",
            ),
            (
                "/linux/namespaces",
                json!([{"type": "pid", "path": "/proc/1/ns/pid"}]),
                "pid namespace /proc/1/ns/pid",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
                "SCMP_ACT_NOTIFY",
            ),
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW",
                       "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
                "SCMP_ACT_NOTIFY",
            ),
            (
                "/hooks",
                json!({"poststop": [{"path": "/bin/true"}]}),
                "hooks",
            ),
            ("/windows", json!({"layerFolders": ["x"]}), "windows"),
            ("/process/args", json!([]), "process.args"),
        ] {
            let message = refusal(field, value);
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn an_ordinary_spec_is_not_refused() {
        unsupported(&spec("/linux/mountLabel", json!(""))).unwrap();
        let listened_to = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"});
        unsupported(&spec("/linux/seccomp", listened_to)).unwrap();
    }

    #[test]
    fn labels_that_engines_add_of_their_own_accord_are_left_out_and_told() {
        for (field, label) in [
            ("/process/apparmorProfile", "docker-default"),
            ("/process/apparmorProfile", "containers-default-0.57.4"),
            ("/process/apparmorProfile", "cri-containerd.apparmor.d"),
            (
                "/process/selinuxLabel",
                "system_u:system_r:container_t:s0:c1,c2",
            ),
            (
                "/linux/mountLabel",
                "system_u:object_r:container_file_t:s0:c1,c2",
            ),
        ] {
            let mut spec = spec(field, json!(label));
            let told = take_labels(&mut spec).unwrap();
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(label), "{told:?}");
            let text = serde_json::to_string(&spec).unwrap();
            assert!(!text.contains(label), "{text}");
        }
    }

    #[test]
    fn labels_that_a_user_chose_are_refused() {
        for (field, label) in [
            ("/process/apparmorProfile", "my-profile"),
            ("/process/apparmorProfile", "docker-default-strict"),
            ("/process/selinuxLabel", "system_u:system_r:my_t:s0"),
            ("/process/selinuxLabel", "nonsense"),
            ("/linux/mountLabel", "system_u:object_r:my_file_t:s0"),
        ] {
            let error = take_labels(&mut spec(field, json!(label))).unwrap_err();
            assert!(error.to_string().contains(label), "{error}");
        }
    }

    #[test]
    fn unconfined_is_no_label() {
        let mut spec = spec("/process/apparmorProfile", json!("unconfined"));
        assert!(take_labels(&mut spec).unwrap().is_empty());
        let left = spec.process().as_ref().unwrap().apparmor_profile();
        assert_eq!(*left, None);
    }

    #[test]
    fn a_mount_loses_its_label_and_keeps_the_rest() {
        let option = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        let mounts = |option: &str| {
            spec(
                "/mounts",
                json!([{"destination": "/x", "type": "tmpfs", "options": ["ro", option]}]),
            )
        };
        let mut kept = mounts(option);
        assert!(take_labels(&mut kept).unwrap().is_empty());
        let left = kept.mounts().as_ref().unwrap()[0].options().clone();
        assert_eq!(left.unwrap(), ["ro"]);
        assert!(take_labels(&mut mounts("context=a:b:mine_t:s0")).is_err());
    }
}
