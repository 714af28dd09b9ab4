//! From the config.json that the host sent to the one that the executor gets: checked, and made to fit this guest.

use std::path::{Path, PathBuf};

mod confinement;
mod kernel;
mod mounts;
mod namespaces;
mod owner;
mod process;

pub use confinement::Confinement;
pub use mounts::Touch;
pub use namespaces::{FindInit, Init, needed};
pub use owner::Owner;
pub use process::{named_capabilities, prepare_process};

use libcontainer::oci_spec::runtime::{
    Hooks, Linux, LinuxNamespaceType, LinuxResources, Process, Spec,
};
use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The spec for the executor.
    pub spec: Spec,
    /// The guest's user and group ids of its process, which own its stdio.
    pub owner: Owner,
    /// Its limits, which the agent itself sets and the executor is not told of.
    pub resources: Option<LinuxResources>,
    /// Sysctls of the pod's namespaces, by name.
    pub pod_sysctls: Vec<(String, String)>,
    /// What its process gives up at last.
    pub confinement: Confinement,
    /// What the executor does when libcontainer has made the mounts.
    pub touches: Touches,
    /// What it does at the very end.
    pub read_only_dev: bool,
    /// The size of its terminal, columns and rows, unless the host says another.
    pub console: Option<(u32, u32)>,
}

/// What libcontainer 0.7 leaves out of a container's file systems. Done in its namespaces, before it can run anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touches {
    pub mounts: Vec<Touch>,
    /// Paths to make read-only; libcontainer makes them unusable for programs and devices too.
    pub read_only: Vec<PathBuf>,
    /// A working directory to make if it is missing, as runc does.
    pub cwd: Option<PathBuf>,
}

/// Checks a config.json and makes it fit this guest (OCI runtime-spec config.md): the cgroup is ours to choose, hooks of the
/// runtime namespace have run on the host, and the terminal is as the host asked.
///
/// # Errors
/// What is wrong with it, by field.
pub fn prepare(
    json: &[u8],
    id: &ContainerId,
    terminal: bool,
    find: FindInit<'_>,
) -> Result<Prepared, SpecError> {
    let mut spec: Spec = parse(json)?;
    check_version_and_root(&spec)?;
    let process = spec
        .process()
        .clone()
        .ok_or(SpecError::Missing("process"))?;
    let mut process = process::fit(process, terminal, "process")?;
    let asked = spec.linux().clone().ok_or(SpecError::Missing("linux"))?;
    let mut linux = asked.clone();
    namespaces::fit(&mut linux, find)?;
    let pod_sysctls = namespaces::take_pod_sysctls(&mut linux, &asked)?;
    // Its root is nobody in the guest, whoever made it.
    let other_users = namespaces::has(&linux, LinuxNamespaceType::User);
    kernel::fit(&mut linux, other_users)?;
    linux.set_cgroups_path(Some(Cgroup::spec_path(id)));
    let resources = linux.resources().clone();
    linux.set_resources(None);
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if other_users && !namespaces::is_new(&linux, LinuxNamespaceType::Network) {
        mounts::bind_sysfs(&mut mounts);
    }
    let touches = Touches {
        mounts: mounts::fit(&mut mounts)?,
        read_only: take_plain_paths(&mut linux),
        cwd: (process.cwd() != Path::new("/")).then(|| process.cwd().clone()),
    };
    let read_only_dev = mounts::has_read_only_dev(&mounts);
    let console = console(&process);
    let confinement = Confinement::take(&mut process, &mut linux);
    let owner = Owner::of_first(&process, &linux);
    let hooks = spec.hooks().as_ref().map(container_hooks);
    spec.set_process(Some(process))
        .set_linux(Some(linux))
        .set_mounts(Some(mounts))
        .set_hooks(hooks);
    namespaces::fit_names(&mut spec, &asked)?;
    Ok(Prepared {
        spec,
        owner,
        resources,
        pod_sysctls,
        confinement,
        touches,
        read_only_dev,
        console,
    })
}

/// Columns and rows that a process wants its terminal to have at first (config.md#process).
pub fn console(process: &Process) -> Option<(u32, u32)> {
    let size = process.console_size()?;
    let cells = |n: u64| u32::try_from(n).ok().filter(|&n| n > 0);
    Some((cells(size.width())?, cells(size.height())?))
}

impl Prepared {
    /// Fits what depends on the root file system, of which `mode` tells the permissions of a directory: a tmpfs without a mode
    /// gets that of the directory below it (runc), and a working directory that is there need not be made.
    pub fn fit_to_root(&mut self, mode: impl Fn(&Path) -> Option<u32>) {
        if self.touches.cwd.as_deref().and_then(&mode).is_some() {
            self.touches.cwd = None;
        }
        for mount in self.spec.mounts_mut().iter_mut().flatten() {
            let options = mount.options().clone().unwrap_or_default();
            let fixed = options.iter().any(|option| option.starts_with("mode="));
            if mount.typ().as_deref() != Some("tmpfs") || fixed {
                continue;
            }
            if let Some(mode) = mode(mount.destination()) {
                let mut with_mode = vec![format!("mode={mode:04o}")];
                with_mode.extend(options);
                mount.set_options(Some(with_mode));
            }
        }
    }
}

fn check_version_and_root(spec: &Spec) -> Result<(), SpecError> {
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
    Ok(())
}

/// readonlyPaths outside of proc and sysfs: libcontainer would make them noexec, nodev and nosuid as well.
fn take_plain_paths(linux: &mut Linux) -> Vec<PathBuf> {
    let listed = linux.readonly_paths().clone().unwrap_or_default();
    let kernels = |path: &String| path.starts_with("/proc/") || path.starts_with("/sys/");
    let (kept, taken): (Vec<_>, Vec<_>) = listed.into_iter().partition(kernels);
    linux.set_readonly_paths(Some(kept));
    taken.into_iter().map(PathBuf::from).collect()
}

/// Reads the limits of an update (config-linux.md#control-groups).
///
/// # Errors
/// What is wrong with them, by field.
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources, SpecError> {
    parse(json)
}

/// prestart, createRuntime, poststart and poststop resolve in the runtime's namespaces, which are the host's, and run there
/// (config.md#posix-platform-hooks). createContainer would too, but has to run in the container's, where no program of the host
/// can be seen: like startContainer it names a program of the container's root file system.
fn container_hooks(hooks: &Hooks) -> Hooks {
    let mut kept = Hooks::default();
    kept.set_create_container(hooks.create_container().clone())
        .set_start_container(hooks.start_container().clone());
    kept
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
    use libcontainer::oci_spec::runtime::Capabilities;
    use serde_json::{Value, json};

    fn example() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": { "path": "/run/vmbox/shares/vmbox/a/rootfs" },
            "process": { "cwd": "/", "args": ["sh"], "env": ["PATH=/bin"], "user": { "uid": 1000, "gid": 100 }, "noNewPrivileges": false,
                         "capabilities": { "bounding": ["CAP_KILL"] } },
            "linux": { "cgroupsPath": "/system.slice/docker-abc.scope", "namespaces": [{ "type": "pid" }, { "type": "mount" }],
                       "readonlyPaths": ["/proc/sys", "/usr"] },
            "hooks": { "prestart": [{ "path": "/usr/bin/nvidia" }], "startContainer": [{ "path": "/bin/hook" }] }
        })
    }

    fn prepared(config: &Value) -> Result<Prepared, SpecError> {
        prepare(
            config.to_string().as_bytes(),
            &ContainerId::parse("a").unwrap(),
            false,
            &|_| None,
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
        let capabilities = prepared(&example()).unwrap().confinement.capabilities;
        assert_eq!(capabilities.effective(), &Some(Capabilities::new()));
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn wrong_type_is_reported_with_its_field() {
        let mut config = example();
        config["process"]["args"] = json!("sh");
        let message = prepared(&config).unwrap_err().to_string();
        assert!(message.contains("process.args"), "{message}");
    }

    #[test]
    fn read_only_paths_with_programs_are_kept_from_libcontainer() {
        let prepared = prepared(&example()).unwrap();
        assert_eq!(prepared.touches.read_only, [PathBuf::from("/usr")]);
        let linux = prepared.spec.linux().clone().unwrap();
        assert_eq!(linux.readonly_paths().as_deref().unwrap(), ["/proc/sys"]);
    }

    #[test]
    fn who_has_the_pods_network_gets_the_guests_sysfs() {
        let mut config = example();
        config["mounts"] = json!([{ "type": "sysfs", "source": "sysfs", "destination": "/sys", "options": ["ro"] }]);
        let source = |config: &Value| {
            let spec = prepared(config).unwrap().spec;
            spec.mounts().as_ref().unwrap()[0].source().clone().unwrap()
        };
        assert_eq!(source(&config), Path::new("sysfs"));
        config["linux"]["namespaces"] = json!([{ "type": "user" }, { "type": "mount" }]);
        config["linux"]["uidMappings"] =
            json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
        config["linux"]["gidMappings"] = config["linux"]["uidMappings"].clone();
        assert_eq!(source(&config), Path::new("/sys"));
    }

    #[test]
    fn who_joins_anothers_users_gets_the_guests_sysfs() {
        let mut config = example();
        config["mounts"] = json!([{ "type": "sysfs", "source": "sysfs", "destination": "/sys" }]);
        config["linux"]["namespaces"] =
            json!([{ "type": "user", "path": "container:web" }, { "type": "mount" }]);
        let id = ContainerId::parse("a").unwrap();
        let find = |id: &str| (id == "web").then_some(Init::Pid(u32::MAX));
        let prepared = prepare(config.to_string().as_bytes(), &id, false, &find).unwrap();
        let mounts = prepared.spec.mounts().clone().unwrap();
        assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/sys")));
    }

    #[test]
    fn names_without_a_namespace_for_them_are_refused() {
        let mut config = example();
        config["domainname"] = json!("x");
        let message = prepared(&config).unwrap_err().to_string();
        assert!(message.contains("domainname"), "{message}");
        config["linux"]["namespaces"] =
            json!([{ "type": "mount" }, { "type": "uts", "path": "pod" }]);
        assert!(prepared(&config).unwrap().spec.domainname().is_none());
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
        config["linux"]["namespaces"] = json!([{ "type": "user" }, { "type": "mount" }]);
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
