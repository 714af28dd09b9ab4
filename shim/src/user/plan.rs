//! From the command line to everything a run needs to know, before anything is made.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;

use super::args::{Form, RunArgs};
use crate::{
    network::{self, NetworkError, SLOTS, Wanted},
    pod::{
        BadId, ContainerId,
        container::Attachment,
        design::{self, DesignError},
        options::{CpuLimit, Disk, MemoryLimit},
        size::{self, Shape},
        spec::Wishes,
    },
    storage::ImageRef,
    vm::{AssetError, Assets, Overrides},
};

/// Why a command line can't be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not a name.
    #[error(transparent)]
    Id(#[from] BadId),
    /// A file that the VM needs is missing.
    #[error(transparent)]
    Asset(#[from] AssetError),
    /// What was asked for can't be had.
    #[error(transparent)]
    Design(#[from] DesignError),
    /// A network that a VM can't have.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Not an image.
    #[error(transparent)]
    Image(#[from] crate::storage::ImageRefError),
    /// The bundle can't be read.
    #[error("read {path}")]
    Bundle {
        /// Its config.json.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// config.json is not what the runtime-spec says.
    #[error("{path}: {field}: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Path of the field, as in `process.args`.
        field: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The bundle's root file system is not there.
    #[error("the root file system {0} is not a directory")]
    NoRootfs(PathBuf),
    /// A volume or disk is not there.
    #[error("{0} is not there")]
    NotThere(PathBuf),
    /// As Docker.
    #[error("the input device is not a TTY (-t needs a terminal on standard input, or no -i)")]
    NotATerminal,
    /// An option that has no meaning here.
    #[error("{0}")]
    Misplaced(&'static str),
    /// Options of the other form.
    #[error("{0}: with a bundle, its config.json says this")]
    NotForBundles(String),
}

/// Where the container comes from.
#[derive(Debug)]
pub enum Source {
    /// A bundle: its spec, its directory, its root file system.
    Bundle {
        spec: Box<Spec>,
        dir: PathBuf,
        rootfs: PathBuf,
    },
    /// An image with a person's wishes.
    Image {
        image: ImageRef,
        wishes: Box<Wishes>,
        user: Option<String>,
    },
}

/// Everything a run needs to know.
#[derive(Debug)]
pub struct Plan {
    pub id: ContainerId,
    pub source: Source,
    pub shape: Shape,
    pub assets: Assets,
    pub disks: Vec<Disk>,
    pub dax_window_mib: u32,
    pub attachment: Attachment,
    pub pod: Option<ContainerId>,
    /// The writable layer stays until `vmbox rm`.
    pub keep: bool,
    pub crash_on: Option<u32>,
    pub hostname: String,
    /// Whose interfaces the pod has.
    pub network: Option<PathBuf>,
}

impl Plan {
    /// The file that becomes the container's `/etc/resolv.conf`, if its engine has made one.
    pub fn resolv_conf(&self) -> Option<PathBuf> {
        let Source::Bundle { spec, dir, .. } = &self.source else {
            return None;
        };
        let mut mounts = spec.mounts().iter().flatten();
        let mount = mounts.find(|m| m.destination() == Path::new("/etc/resolv.conf"))?;
        mount.source().as_ref().map(|source| dir.join(source))
    }
}

/// Decides. All paths in the plan are absolute.
///
/// # Errors
/// The first thing that is wrong.
pub fn plan(args: RunArgs, form: Form, stdin_is_terminal: bool) -> Result<Plan, PlanError> {
    if args.pod.is_some()
        && !(args.disks.is_empty()
            && args.dax_window.is_none()
            && args.kernel.is_none()
            && args.network.is_none())
    {
        return Err(PlanError::Misplaced(
            "--disk, --dax-window, --network and --kernel belong to the container that starts the pod",
        ));
    }
    if args.wants_runc() {
        return Err(PlanError::Misplaced(
            "--detach, --keep, --pid-file and --console-socket are for bundles, without options of ours",
        ));
    }
    let assets = Assets::find(&Overrides {
        kernel: args.kernel.clone(),
        image: args.initrd.clone(),
    })?;
    match form {
        Form::Bundle => plan_bundle(&args, assets),
        Form::Image => plan_image(args, assets, stdin_is_terminal),
    }
}

fn plan_bundle(args: &RunArgs, assets: Assets) -> Result<Plan, PlanError> {
    if !args.command.is_empty() {
        return Err(PlanError::Misplaced(
            "a bundle has its command in config.json",
        ));
    }
    let foreign = foreign_to_bundles(args);
    if !foreign.is_empty() {
        return Err(PlanError::NotForBundles(foreign.join(", ")));
    }
    let id: ContainerId = args.image.parse()?;
    let dir = absolute(args.bundle.as_deref().unwrap_or(Path::new(".")));
    let spec = read_spec(&dir)?;
    let root = spec.root().as_ref().ok_or(DesignError::Missing("root"))?;
    let rootfs = dir.join(root.path());
    if !rootfs.is_dir() {
        return Err(PlanError::NoRootfs(rootfs));
    }
    // Finds what can't be done before anything is made.
    let checked = design::for_guest(spec.clone(), &id, &dir)?;
    for bind in &checked.binds {
        must_exist(&bind.source)?;
    }
    let network = match (network::wanted(&spec), &args.pod) {
        // The pod has the network of the container that started it.
        (_, Some(_)) | (Wanted::New, None) => None,
        (Wanted::Host, None) => return Err(NetworkError::Host.into()),
        (Wanted::At(path), None) => Some(absolute(&path)),
    };
    let (memory, cpus) = design::limits(&spec)?;
    let terminal = spec
        .process()
        .as_ref()
        .and_then(|process| process.terminal())
        .unwrap_or(false);
    Ok(Plan {
        hostname: spec.hostname().clone().unwrap_or_else(|| id.to_string()),
        source: Source::Bundle {
            spec: Box::new(spec),
            dir,
            rootfs,
        },
        shape: shape(memory, cpus, network.as_deref())?,
        network,
        assets,
        disks: absolute_disks(&args.disks)?,
        dax_window_mib: dax_window_mib(args),
        attachment: Attachment {
            stdin: true,
            terminal,
        },
        pod: args.pod.clone(),
        keep: false,
        crash_on: args.debug_crash_agent_on,
        id,
    })
}

/// The options given that only an image's container can have: a bundle's is as its config.json says, to the letter.
pub fn foreign_to_bundles(args: &RunArgs) -> Vec<&'static str> {
    let given = [
        ("--interactive", args.interactive),
        ("--tty", args.tty),
        ("--name", args.name.is_some()),
        ("--memory", args.memory.is_some()),
        ("--cpus", args.cpus.is_some()),
        ("--pids-limit", args.pids_limit.is_some()),
        ("--volume", !args.volumes.is_empty()),
        ("--env", !args.env.is_empty()),
        ("--workdir", args.workdir.is_some()),
        ("--user", args.user.is_some()),
        ("--entrypoint", args.entrypoint.is_some()),
        ("--hostname", args.hostname.is_some()),
        ("--network", args.network.is_some()),
        ("--read-only", args.read_only),
        ("--cap-add", !args.cap_add.is_empty()),
        ("--cap-drop", !args.cap_drop.is_empty()),
    ];
    let given = given.into_iter().filter(|(_, given)| *given);
    given.map(|(name, _)| name).collect()
}

fn plan_image(args: RunArgs, assets: Assets, stdin_is_terminal: bool) -> Result<Plan, PlanError> {
    if args.tty && args.interactive && !stdin_is_terminal {
        return Err(PlanError::NotATerminal);
    }
    let id = args.name.clone().unwrap_or_else(ContainerId::random);
    let image = absolute_image(ImageRef::parse(&args.image)?);
    let mut volumes = args.volumes.clone();
    for volume in &mut volumes {
        volume.source = absolute(&volume.source);
        must_exist(&volume.source)?;
    }
    let network = args.network.as_deref().map(named_network).transpose()?;
    let disks = absolute_disks(&args.disks)?;
    let dax_window_mib = dax_window_mib(&args);
    let wishes = Wishes {
        command: args.command,
        entrypoint: args.entrypoint,
        env: args
            .env
            .into_iter()
            .filter_map(|variable| complete(variable, |key| std::env::var(key).ok()))
            .collect(),
        working_dir: args.workdir,
        hostname: args.hostname,
        terminal: args.tty,
        read_only: args.read_only,
        memory: args.memory,
        cpus: args.cpus,
        pids: args.pids_limit,
        cap_add: args.cap_add,
        cap_drop: args.cap_drop,
        volumes,
        disks: disks.len(),
    };
    Ok(Plan {
        hostname: crate::pod::spec::hostname(&id, &wishes),
        source: Source::Image {
            image,
            wishes: Box::new(wishes),
            user: args.user,
        },
        shape: shape(args.memory, args.cpus, network.as_deref())?,
        network,
        assets,
        disks,
        dax_window_mib,
        attachment: Attachment {
            stdin: args.interactive,
            terminal: args.tty,
        },
        pod: args.pod,
        // Without a name nobody could find it again.
        keep: !args.rm && args.name.is_some(),
        crash_on: args.debug_crash_agent_on,
        id,
    })
}

/// A VM with a network has NICs.
fn shape(
    memory: Option<MemoryLimit>,
    cpus: Option<CpuLimit>,
    network: Option<&Path>,
) -> Result<Shape, DesignError> {
    let nics = network.map_or(0, |_| SLOTS);
    Ok(Shape::fixed(size::for_one(memory, cpus)?, nics))
}

/// A path, or what `ip netns` knows by this name.
fn named_network(network: &Path) -> Result<PathBuf, NetworkError> {
    let is_name = network.components().count() == 1 && !network.is_absolute();
    match network.to_str() {
        Some("host") => Err(NetworkError::Host),
        Some(name) if is_name => Ok(Path::new("/run/netns").join(name)),
        _ => Ok(absolute(network)),
    }
}

/// Reads a bundle's config.json.
///
/// # Errors
/// It is not there, or malformed: the message names the field.
pub fn read_spec(dir: &Path) -> Result<Spec, PlanError> {
    let path = dir.join("config.json");
    let text = fs::read(&path).map_err(|source| PlanError::Bundle {
        path: path.clone(),
        source,
    })?;
    let mut parser = serde_json::Deserializer::from_slice(&text);
    let spec = serde_path_to_error::deserialize(&mut parser);
    spec.map(without_empty_paths)
        .map_err(|error| PlanError::Config {
            path,
            field: error.path().to_string(),
            source: error.into_inner(),
        })
}

/// A namespace with an empty path is a new one, as Go's programs read it.
fn without_empty_paths(mut spec: Spec) -> Spec {
    let linux = spec.linux_mut().as_mut();
    let namespaces = linux.and_then(|linux| linux.namespaces_mut().as_mut());
    for namespace in namespaces.into_iter().flatten() {
        if namespace
            .path()
            .as_ref()
            .is_some_and(|path| path.as_os_str().is_empty())
        {
            namespace.set_path(None);
        }
    }
    spec
}

/// `K=V` as it is; `K` alone with its value here, or not at all.
fn complete(variable: String, lookup: impl Fn(&str) -> Option<String>) -> Option<String> {
    if variable.contains('=') {
        return Some(variable);
    }
    lookup(&variable).map(|value| format!("{variable}={value}"))
}

fn dax_window_mib(args: &RunArgs) -> u32 {
    let mib = args.dax_window.map_or(0, |size| size.mib_rounded_up());
    u32::try_from(mib.next_multiple_of(2)).unwrap_or(u32::MAX - 1)
}

fn absolute_disks(disks: &[Disk]) -> Result<Vec<Disk>, PlanError> {
    let absolute = |disk: &Disk| Disk {
        path: absolute(&disk.path),
        read_only: disk.read_only,
    };
    let disks: Vec<Disk> = disks.iter().map(absolute).collect();
    disks.iter().try_for_each(|disk| must_exist(&disk.path))?;
    Ok(disks)
}

fn must_exist(path: &Path) -> Result<(), PlanError> {
    if path.exists() {
        Ok(())
    } else {
        Err(PlanError::NotThere(path.to_owned()))
    }
}

/// Entering a pod's mount namespace changes the working directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn absolute_image(image: ImageRef) -> ImageRef {
    match image {
        ImageRef::Layout { dir, tag } => ImageRef::Layout {
            dir: absolute(&dir),
            tag,
        },
        ImageRef::Archive { file, tag } => ImageRef::Archive {
            file: absolute(&file),
            tag,
        },
        ImageRef::RootDir(dir) => ImageRef::RootDir(absolute(&dir)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_malformed_field_is_named() {
        let bundle = tempfile::tempdir().unwrap();
        let text = r#"{"ociVersion":"1.2.0","process":{"cwd":"/","args":"not a list"},"root":{"path":"rootfs"}}"#;
        fs::write(bundle.path().join("config.json"), text).unwrap();
        let message = read_spec(bundle.path()).unwrap_err().to_string();
        assert!(
            message.contains("config.json: process.args: invalid type"),
            "{message}"
        );
    }

    #[test]
    fn a_namespace_with_an_empty_path_is_a_new_one() {
        let bundle = tempfile::tempdir().unwrap();
        let config = r#"{"ociVersion": "1.2.0", "linux": {"namespaces": [
            {"type": "mount", "path": ""}, {"type": "network", "path": "/run/netns/x"}
        ]}}"#;
        fs::write(bundle.path().join("config.json"), config).unwrap();
        let spec = read_spec(bundle.path()).unwrap();
        let namespaces = spec.linux().clone().unwrap().namespaces().clone().unwrap();
        let paths: Vec<_> = namespaces.iter().map(|n| n.path().as_deref()).collect();
        assert_eq!(paths, [None, Some(Path::new("/run/netns/x"))]);
    }

    #[test]
    fn options_that_a_bundle_would_not_heed_are_named() {
        use super::super::args::{Cli, Verb};
        let foreign = |words: &[&str]| {
            let words = ["vmbox", "run", "--bundle", "b"].iter().chain(words);
            match <Cli as clap::Parser>::try_parse_from(words).unwrap().verb {
                Verb::Run(args) => foreign_to_bundles(&args),
                other => panic!("{other:?}"),
            }
        };
        let named = foreign(&["-m", "64M", "-v", "/a:/b", "-t", "web"]);
        assert_eq!(named, ["--tty", "--memory", "--volume"]);
        let none = foreign(&["--rm", "--timing", "--kernel", "k", "--pod", "p", "web"]);
        assert!(none.is_empty(), "{none:?}");
    }

    #[test]
    fn networks_are_named_as_ip_netns_does_or_by_path() {
        let of = |name: &str| named_network(Path::new(name));
        assert_eq!(of("web").unwrap(), Path::new("/run/netns/web"));
        assert_eq!(of("/proc/7/ns/net").unwrap(), Path::new("/proc/7/ns/net"));
        assert!(matches!(of("host"), Err(NetworkError::Host)));
    }

    #[test]
    fn a_missing_bundle_is_named() {
        let message = super::super::one_line(&read_spec(Path::new("/no/such/bundle")).unwrap_err());
        assert!(
            message.contains("/no/such/bundle/config.json: No such file"),
            "{message}"
        );
    }

    #[test]
    fn variables_without_value_take_ours() {
        let lookup = |key: &str| (key == "HOME").then(|| "/root".to_owned());
        assert_eq!(complete("A=1".into(), lookup), Some("A=1".into()));
        assert_eq!(complete("HOME".into(), lookup), Some("HOME=/root".into()));
        assert_eq!(complete("NOPE".into(), lookup), None);
    }
}
