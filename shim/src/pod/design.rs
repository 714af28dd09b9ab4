//! Pure decisions: what a pod's VM is made of, and what an OCI spec of the host becomes in the guest.
//!
//! The host's paths in a spec mean nothing in the guest: for its bind mounts see [`binds`].

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use vmbox_config::{DiskConfig, Mac, NicConfig, ShareConfig, VmConfig, VsockConfig};

use super::{
    ContainerId,
    binds::{self, HostBind, ReadOnly},
    options::{BadOption, CpuLimit, Disk, MemoryLimit},
    refuse,
    size::{self, Limits, MAXIMUM_MEMORY_MIB, Shape},
};

/// The tag of the pod's one share.
pub const SHARE_TAG: &str = "vmbox";
/// Where the agent mounts that share.
pub const GUEST_SHARE: &str = "/run/vmbox/shares/vmbox";
/// The guest context id; no host-wide CIDs exist, so every pod can have the same.
const GUEST_CID: u32 = 3;
/// Drivers that make interfaces of their own at boot, which nobody asked for and every container would see.
const NO_SPARE_INTERFACES: &str = "dummy.numdummies=0 ifb.numifbs=0";

/// Why a spec can't be run in a guest.
#[derive(Debug, thiserror::Error)]
pub enum DesignError {
    /// A field that OCI requires is missing.
    #[error("config.json: {0} is missing")]
    Missing(&'static str),
    /// Something that would silently be weaker or different.
    #[error("config.json: {0}")]
    Unsupported(String),
    /// A limit that can't be met.
    #[error(transparent)]
    Limit(#[from] BadOption),
    /// More memory than a VM can have.
    #[error("{0} MiB of memory are too many: a VM has at most {MAXIMUM_MEMORY_MIB} MiB")]
    TooMuchMemory(u64),
}

/// The limits that a spec sets, checked (`config-linux.md#control-groups`).
///
/// # Errors
/// A limit too small or too large for a VM.
pub fn limits(spec: &Spec) -> Result<(Option<MemoryLimit>, Option<CpuLimit>), DesignError> {
    let limits = Limits::of(spec);
    Ok((
        limits.memory.map(MemoryLimit::of_bytes).transpose()?,
        limits.cpu_millis().map(CpuLimit::of_millis).transpose()?,
    ))
}

/// The files that a VM is made of and the places where it meets the host.
#[derive(Debug, Clone)]
pub struct VmPlaces<'a> {
    /// The guest kernel.
    pub kernel: &'a Path,
    /// The guest image.
    pub image: Option<&'a Path>,
    /// The pod's share.
    pub share: &'a Path,
    /// The vsock socket.
    pub vsock: &'a Path,
    /// The control socket.
    pub control: &'a Path,
}

/// The monitor's configuration, but for the descriptors, which exist only at launch.
pub fn vm_config(
    shape: Shape,
    places: &VmPlaces<'_>,
    disks: &[Disk],
    dax_window_mib: u32,
    cmdline: &str,
) -> VmConfig {
    VmConfig {
        vcpus: shape.vcpus,
        online_vcpus: Some(shape.online_vcpus),
        memory_mib: shape.memory_mib,
        extra_memory_mib: shape.extra_memory_mib,
        kernel: places.kernel.to_owned(),
        initrd: places.image.map(Path::to_owned),
        cmdline: format!("{NO_SPARE_INTERFACES} {cmdline}")
            .trim_end()
            .to_owned(),
        shares: vec![ShareConfig {
            tag: SHARE_TAG.into(),
            path: places.share.to_owned(),
            dax_window_mib,
        }],
        disks: disks
            .iter()
            .map(|disk| DiskConfig {
                path: disk.path.clone(),
                read_only: disk.read_only,
                serial: String::new(),
            })
            .collect(),
        nics: (0..shape.nics)
            .map(|slot| NicConfig {
                mac: Mac(vmbox_protocol::slot_mac(slot)),
                // The most that the guest may set; what its interface has on the host can change.
                mtu: None,
            })
            .collect(),
        vsock: Some(VsockConfig {
            guest_cid: GUEST_CID,
            socket: places.vsock.to_owned(),
        }),
        balloon: true,
        serial: None,
        control: Some(places.control.to_owned()),
        event_fd: None,
        lifeline_fd: None,
    }
}

/// A spec rewritten for the guest, and what the host must place in the share for it.
#[derive(Debug, Clone)]
pub struct GuestSpec {
    /// What the agent gets.
    pub spec: Spec,
    /// In the order of the mounts.
    pub binds: Vec<HostBind>,
    /// What of the spec is left out, in words for the user, to be told once.
    pub left_out: Vec<String>,
}

impl GuestSpec {
    /// Of a read-only mount with others below it, which `has_mounts_below` tells of a path of the host, these stay writable, as with runc.
    pub fn keep_writable_below(&mut self, has_mounts_below: impl Fn(&Path) -> bool) {
        let mixed = |bind: &&HostBind| bind.recursive && bind.read_only == ReadOnly::Top;
        let mixed = self.binds.iter().filter(mixed);
        let mixed = mixed.filter(|bind| has_mounts_below(&bind.source));
        let sources: Vec<PathBuf> = mixed.map(|bind| guest_path(&bind.target)).collect();
        for mount in self.spec.mounts_mut().iter_mut().flatten() {
            if mount.source().as_ref().is_some_and(|s| sources.contains(s)) {
                binds::leave_to_host(mount);
            }
        }
    }
}

/// The path of a container's root file system, relative to the share.
pub fn rootfs_in_share(id: &ContainerId) -> PathBuf {
    Path::new(id.as_str()).join("rootfs")
}

/// The path in the guest of something in the share.
pub fn guest_path(in_share: &Path) -> PathBuf {
    Path::new(GUEST_SHARE).join(in_share)
}

/// Turns a spec whose paths are the host's into one whose paths are the guest's. Relative bind sources are relative to
/// `base` (the bundle). Sources already below [`GUEST_SHARE`] are left alone.
///
/// # Errors
/// A required field is missing, or the spec asks for what a guest can't give.
pub fn for_guest(mut spec: Spec, id: &ContainerId, base: &Path) -> Result<GuestSpec, DesignError> {
    refuse::unsupported(&spec)?;
    let left_out = refuse::take_labels(&mut spec)?;
    let mut root = spec.root().clone().ok_or(DesignError::Missing("root"))?;
    root.set_path(guest_path(&rootfs_in_share(id)));
    spec.set_root(Some(root));

    let mut binds = Vec::new();
    let linux = spec.linux().clone();
    for mount in spec.mounts_mut().iter_mut().flatten() {
        binds::rewrite(mount, id, base, linux.as_ref(), &mut binds)?;
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(Some(Path::new("/").join(id.as_str())));
        if let Some(namespaces) = linux.namespaces_mut() {
            // The pod's network is the guest's own: the namespace named here is the host's.
            namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        }
        if let Some(resources) = linux.resources_mut() {
            size::take_host_only(resources);
        }
    }
    Ok(GuestSpec {
        spec,
        binds,
        left_out,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        "web".parse().unwrap()
    }

    fn spec(value: serde_json::Value) -> Spec {
        serde_json::from_value(value).unwrap()
    }

    fn minimal() -> serde_json::Value {
        serde_json::json!({
            "ociVersion": "1.2.0",
            "process": {"args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
        })
    }

    #[test]
    fn limits_come_from_the_spec() {
        let mut value = minimal();
        value["linux"] = serde_json::json!({"resources": {"memory": {"limit": 134217728}, "cpu": {"quota": 150000, "period": 100000}}});
        let (memory, cpus) = limits(&spec(value)).unwrap();
        assert_eq!(memory.unwrap().bytes(), 128 << 20);
        assert_eq!(cpus.unwrap().millis(), 1500);
    }

    #[test]
    fn unlimited_is_no_limit() {
        let mut value = minimal();
        value["linux"] =
            serde_json::json!({"resources": {"memory": {"limit": -1}, "cpu": {"quota": -1}}});
        assert_eq!(limits(&spec(value)).unwrap(), (None, None));
    }

    #[test]
    fn the_root_and_binds_are_in_the_share() {
        let mut value = minimal();
        value["mounts"] =
            serde_json::json!([{"destination": "/b", "source": "b", "options": ["bind"]}]);
        let guest = for_guest(spec(value), &id(), Path::new("/bundle")).unwrap();
        assert_eq!(guest.binds[0].source, Path::new("/bundle/b"));
        assert_eq!(
            guest.spec.root().as_ref().unwrap().path(),
            Path::new("/run/vmbox/shares/vmbox/web/rootfs")
        );
    }

    #[test]
    fn the_network_namespace_is_the_pods() {
        let mut value = minimal();
        value["linux"] = serde_json::json!({"namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/x"}]});
        let guest = for_guest(spec(value), &id(), Path::new("/")).unwrap();
        let namespaces = guest
            .spec
            .linux()
            .as_ref()
            .unwrap()
            .namespaces()
            .clone()
            .unwrap();
        assert_eq!(namespaces.len(), 1);
        assert_eq!(namespaces[0].typ(), LinuxNamespaceType::Pid);
    }

    #[test]
    fn what_would_be_weaker_is_refused() {
        let mut value = minimal();
        value["process"]["apparmorProfile"] = "my-profile".into();
        assert!(for_guest(spec(value), &id(), Path::new("/")).is_err());
        let mut value = minimal();
        value["linux"] = serde_json::json!({"intelRdt": {"closID": "a"}});
        assert!(for_guest(spec(value), &id(), Path::new("/")).is_err());
    }

    #[test]
    fn an_engines_default_label_does_not_reach_the_guest() {
        let mut value = minimal();
        value["process"]["apparmorProfile"] = "docker-default".into();
        let guest = for_guest(spec(value), &id(), Path::new("/")).unwrap();
        let process = guest.spec.process().as_ref().unwrap();
        assert_eq!(*process.apparmor_profile(), None);
        assert_eq!(guest.left_out.len(), 1);
    }

    #[test]
    fn missing_process_is_named() {
        let mut value = minimal();
        value.as_object_mut().unwrap().remove("process");
        let message = for_guest(spec(value), &id(), Path::new("/"))
            .unwrap_err()
            .to_string();
        assert!(message.contains("process is missing"), "{message}");
    }

    #[test]
    fn what_is_mounted_below_a_read_only_mount_is_writable_unless_that_is_not_wanted() {
        let mut value = minimal();
        let mount = |name: &str, options: serde_json::Value| serde_json::json!({"destination": name, "source": name, "options": options});
        value["mounts"] = serde_json::json!([
            mount("/mixed", serde_json::json!(["rbind", "ro", "nosuid"])),
            mount("/plain", serde_json::json!(["rbind", "ro"])),
            mount("/mixed/all", serde_json::json!(["rbind", "ro", "rro"])),
            mount("/mixed/one", serde_json::json!(["bind", "ro"])),
        ]);
        let mut guest = for_guest(spec(value), &id(), Path::new("/")).unwrap();
        guest.keep_writable_below(|path| path.starts_with("/mixed"));
        let mounts = guest.spec.mounts().iter().flatten();
        let options: Vec<String> = mounts
            .map(|mount| mount.options().clone().unwrap_or_default().join(" "))
            .collect();
        assert_eq!(
            options,
            ["rbind nosuid", "rbind ro", "rbind ro rro", "bind ro"]
        );
        assert_eq!(guest.binds[0].read_only, ReadOnly::Top);
    }
}
