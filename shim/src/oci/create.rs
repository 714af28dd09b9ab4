//! `create`: from a bundle to a container whose process waits for `start`.
//!
//! ```text
//! bundle ─► directory ─► pod (new, or joined) ─► keeper ─► hooks ─► mounts ─► VM ─► agent creates ─► keeper goes
//! ```
//! Whatever fails undoes what was made before it. A command that is killed leaves a VM without anybody who holds its
//! lifeline, which ends, and files for `delete` or `gc`.

use std::{
    fs::{self, File},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::Child,
    time::SystemTime,
};

use oci_spec::runtime::{LinuxResources, Spec};

use super::{
    Context,
    args::BundleArgs,
    cgroup::{self, Cgroup, Driver},
    claims, delete,
    error::OciError,
    hooks::HostHooks,
    occupied,
    pods::Place,
    record::{Phase, Record, Status},
    sandbox,
    seat::{Console, Netns, Seat},
    store::{self, Held, PROCESS},
    view::{Files, View},
};
use crate::{
    network::{self, NetworkError, PodNetwork, Wanted},
    pod::{
        ContainerId,
        binds::{HostBind, ReadOnly},
        container::spec_bytes,
        design::{self, GuestSpec},
        mount_table,
        place::Corner,
        refuse,
        rootfs::make_working_dir,
        size::Limits,
        tree::Tree,
    },
    user::{PlanError, one_line, read_spec},
};

/// A bundle, read and found good.
#[derive(Debug)]
struct Bundle {
    dir: PathBuf,
    rootfs: PathBuf,
    spec: Spec,
    hooks: HostHooks,
    netns: Netns,
}

/// A container that waits for `start`.
#[derive(Debug)]
pub struct Created<'a> {
    /// Its keeper, a child of ours.
    pub child: Child,
    /// What it is attached to.
    pub console: Console<'a>,
}

/// Creates a container.
///
/// # Errors
/// Nothing was made, or all of it was undone.
pub fn create<'a>(
    context: &Context,
    id: &str,
    args: &'a BundleArgs,
    detached: bool,
) -> Result<Created<'a>, OciError> {
    let id = store::parse_id(id)?;
    refuse_descriptors(args.start.preserve_fds)?;
    let bundle = read(&args.bundle)?;
    let terminal = bundle.spec.process().as_ref();
    let terminal = terminal.and_then(|p| p.terminal()).unwrap_or(false);
    let socket = args.start.console_socket.as_deref();
    let socket = socket.filter(|path| !path.as_os_str().is_empty());
    let console = console(terminal, socket, detached)?;
    let pid_file = args.start.pid_file.as_deref().map(absolute);
    let held = Held::claim(&context.root, &id)?;
    let created = in_directory(context, &held, &id, bundle, console, pid_file.as_deref());
    if created.is_err()
        && let Err(error) = held.remove()
    {
        context.warn(&one_line(&error));
    }
    created.map(|child| Created { child, console })
}

/// A guest has none of the host's descriptors.
pub fn refuse_descriptors(count: u32) -> Result<(), OciError> {
    match count {
        0 => Ok(()),
        _ => Err(OciError::Refused(
            "--preserve-fds: descriptors of the host can't be passed into a guest".into(),
        )),
    }
}

/// Who has the terminal, as runc decides it.
pub fn console(
    terminal: bool,
    socket: Option<&Path>,
    detached: bool,
) -> Result<Console<'_>, OciError> {
    match (terminal, socket, detached) {
        (true, Some(socket), _) => Ok(Console::Socket(socket)),
        (true, None, true) => Err(OciError::NoConsole),
        (true, None, false) => Ok(Console::Ours),
        (false, Some(_), _) => Err(OciError::UselessConsole),
        (false, None, _) => Ok(Console::Streams),
    }
}

/// Entering a pod's mount namespace changes the working directory.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn read(dir: &Path) -> Result<Bundle, OciError> {
    let dir =
        fs::canonicalize(dir).map_err(OciError::host(format!("the bundle {}", dir.display())))?;
    let mut spec = read_spec(&dir)?;
    let root = spec.root().as_ref();
    let root = root.ok_or(design::DesignError::Missing("root"))?;
    let rootfs = dir.join(root.path());
    if !rootfs.is_dir() {
        return Err(PlanError::NoRootfs(rootfs).into());
    }
    let netns = netns(&spec)?;
    let hooks = match spec.hooks_mut() {
        Some(hooks) => HostHooks::take(hooks).map_err(|source| OciError::Json {
            path: dir.join("config.json"),
            source,
        })?,
        None => HostHooks::default(),
    };
    Ok(Bundle {
        dir,
        rootfs,
        spec,
        hooks,
        netns,
    })
}

fn in_directory(
    context: &Context,
    held: &Held,
    id: &ContainerId,
    mut bundle: Bundle,
    console: Console<'_>,
    pid_file: Option<&Path>,
) -> Result<Child, OciError> {
    let cgroup = cgroup_of(context, &bundle.spec, id)?;
    if let Some(cgroup) = &cgroup {
        // Before it is written down as the container's: what is refused here is left as it was.
        inspect(context, &cgroup.dir())?;
    }
    let mut place = Place::for_container(context, &mut bundle.spec)?;
    let mut record = Record {
        oci_version: bundle.spec.version().clone(),
        id: id.to_string(),
        bundle: bundle.dir.clone(),
        rootfs: bundle.rootfs.clone(),
        created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
        owner: rustix::process::getuid().as_raw(),
        annotations: annotations(&bundle.spec),
        pod: place.dir.path().to_owned(),
        joined: !place.is_new(),
        phase: Phase::Creating,
        keeper: None,
        cgroup,
        limits: Limits::of(&bundle.spec),
        guest_pid: 0,
        hooks: serde_json::to_value(&bundle.hooks).unwrap_or_default(),
    };
    let created = held
        .write(&record)
        .and_then(|()| place.register(id, &held.dir))
        .and_then(|()| in_pod(context, held, id, bundle, console, &mut place, &mut record))
        .and_then(|(seat, view)| settle(held, seat, &view, &mut record, pid_file));
    match created {
        Ok(child) => {
            place.release()?;
            Ok(child)
        }
        Err(error) => {
            let given_up = place
                .give_up(id)
                .and_then(|()| delete::leave_cgroup(&record, &[]));
            if let Err(error) = given_up {
                context.warn(&one_line(&error));
            }
            Err(error)
        }
    }
}

/// Makes everything, up to a process in the guest that waits for `start`.
fn in_pod(
    context: &Context,
    held: &Held,
    id: &ContainerId,
    mut bundle: Bundle,
    console: Console<'_>,
    place: &mut Place,
    record: &mut Record,
) -> Result<(Seat, View), OciError> {
    make_working_dir(&bundle.rootfs, &bundle.spec)
        .map_err(|error| OciError::Refused(one_line(&error)))?;
    remember_process(&held.dir, &bundle.spec)?;
    let program = program(&bundle.spec);
    let resolv_conf = resolv_conf(&bundle.spec, &bundle.dir);
    let hostname = bundle.spec.hostname().clone();
    let resources = resources(&bundle.spec);
    let rests = place.is_new() && sandbox::may_rest(&bundle.spec);
    if rests {
        sandbox::give_the_pods_namespaces(&mut bundle.spec);
    }
    let mut guest = design::for_guest(bundle.spec, id, &bundle.dir)?;
    guest.keep_writable_below(mount_table::has_mounts_below);
    for field in &guest.left_out {
        context.warn(&format!("config.json: {field}"));
    }
    let trees = trees(id, &bundle.rootfs, &guest)?;
    let view = View::Own(Files::of(&held.dir, &bundle.rootfs, &guest));
    let seat = Seat::take(&place.dir, console, &bundle.netns, Some(&held.dir))?;
    record.keeper = Some(seat.process);
    held.write(record)?;
    context.note(|| format!("container {id}: process {} stands for it", seat.process.pid));
    if let Some(cgroup) = &record.cgroup {
        cgroup.make(id.as_str(), seat.process.pid)?;
        claims::apply(&cgroup.dir(), &resources)?;
    }
    if let Some(why) = claims::without_effect(&resources, record) {
        context.warn(&format!("config.json: {why}"));
    }
    bundle
        .hooks
        .before_start(&record.hook_state(Status::Creating))?;
    let spec = spec_bytes(&guest.spec).map_err(|error| OciError::Host {
        what: "write the container's spec".into(),
        source: error.into(),
    })?;
    let netns = match &bundle.netns {
        Netns::At(path) => path.clone(),
        Netns::New => format!("/proc/{}/ns/net", seat.process.pid).into(),
    };
    let cgroup = record.cgroup.as_ref().map(Cgroup::dir);
    place.follow_network(&netns, resolv_conf.as_deref(), cgroup.as_deref())?;
    let hostname = hostname.unwrap_or_else(|| id.to_string());
    place.open(&hostname, cgroup.as_deref())?;
    context.note(|| {
        format!(
            "container {id}: the guest of {} is up",
            place.dir.path().display()
        )
    });
    place.connect_network()?;
    let corner = Corner::make(&place.dir.share(), id)?;
    for (tree, target) in &trees {
        tree.attach(&corner, target)?;
    }
    record.guest_pid = place
        .create(id, spec, seat.stdio.clone(), rests)
        .map_err(|error| error.about(&program))?;
    context.note(|| match record.guest_pid {
        0 => format!("container {id}: made, without a process in the guest so far"),
        pid => format!("container {id}: made, process {pid} of the guest"),
    });
    Ok((seat, view))
}

/// Everything is made: from here on the container has a life of its own.
fn settle(
    held: &Held,
    seat: Seat,
    view: &View,
    record: &mut Record,
    pid_file: Option<&Path>,
) -> Result<Child, OciError> {
    record.phase = Phase::Created;
    held.write(record)?;
    if let Some(path) = pid_file {
        write_pid(path, seat.process.pid)?;
    }
    seat.go(view)
}

/// Writes a process id to a file, in one step, without newline: as runc does.
///
/// # Errors
/// As the file system says.
pub fn write_pid(path: &Path, pid: u32) -> Result<(), OciError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}"));
    fs::write(&new, pid.to_string())
        .and_then(|()| fs::rename(&new, path))
        .map_err(OciError::host(format!("write {}", path.display())))
}

fn annotations(spec: &Spec) -> std::collections::BTreeMap<String, String> {
    let annotations = spec.annotations().iter().flatten();
    annotations
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// `exec` starts from it; for its owner only, as it has the environment.
fn remember_process(dir: &Path, spec: &Spec) -> Result<(), OciError> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(dir.join(PROCESS))
        .map_err(OciError::host("write the container's process"))?;
    serde_json::to_writer(file, spec.process()).map_err(|error| OciError::Host {
        what: "write the container's process".into(),
        source: error.into(),
    })
}

/// The file that becomes the container's `/etc/resolv.conf`.
fn resolv_conf(spec: &Spec, base: &Path) -> Option<PathBuf> {
    let mut mounts = spec.mounts().iter().flatten();
    let mount = mounts.find(|m| m.destination() == Path::new("/etc/resolv.conf"))?;
    mount.source().as_ref().map(|source| base.join(source))
}

fn program(spec: &Spec) -> String {
    let args = spec.process().as_ref().and_then(|p| p.args().as_ref());
    args.and_then(|args| args.first().cloned())
        .unwrap_or_default()
}

/// The cgroup on the host. Where none is made though one is named, the user is told.
fn cgroup_of(context: &Context, spec: &Spec, id: &ContainerId) -> Result<Option<Cgroup>, OciError> {
    let linux = spec.linux().as_ref();
    let named = linux.and_then(|linux| linux.cgroups_path().as_deref());
    let cgroup = cgroup::place(context.cgroups, named, id.as_str())?;
    match (&cgroup, named) {
        (Some(cgroup), _) => cgroup.refuse_what_is_there()?,
        (None, Some(named)) => {
            let why = match cgroup::is_slice(named) && context.cgroups == Driver::Cgroupfs {
                true => "it is systemd's, which --systemd-cgroup asks for",
                false => "only cgroup v2 is",
            };
            context.warn(&format!(
                "linux.cgroupsPath: {} is not made on the host: {why}",
                named.display()
            ));
        }
        (None, None) => {}
    }
    Ok(cgroup)
}

fn resources(spec: &Spec) -> LinuxResources {
    let linux = spec.linux().as_ref();
    let resources = linux.and_then(|linux| linux.resources().clone());
    resources.unwrap_or_default()
}

/// Tells of processes that are in the cgroup before the container.
fn inspect(context: &Context, cgroup: &Path) -> Result<(), OciError> {
    let count = occupied::processes_in(cgroup)?;
    if count > 0 {
        context.warn(&format!(
            "container's cgroup is not empty: {count} process(es) found"
        ));
    }
    Ok(())
}

/// The network namespace that engines find by our pid, and move interfaces to. A label is refused first: it is the more
/// telling of the two.
fn netns(spec: &Spec) -> Result<Netns, OciError> {
    refuse::take_labels(&mut spec.clone())?;
    match network::wanted(spec) {
        Wanted::Host => Err(NetworkError::Host.into()),
        Wanted::New => Ok(Netns::New),
        Wanted::At(path) => {
            let path = absolute(&path);
            // It is there, and not the host's.
            PodNetwork::open(&path)?;
            Ok(Netns::At(path))
        }
    }
}

/// What the host has of the container, as it is seen from here: an engine's mounts included.
fn trees(
    id: &ContainerId,
    rootfs: &Path,
    guest: &GuestSpec,
) -> Result<Vec<(Tree, PathBuf)>, OciError> {
    let root = HostBind {
        source: rootfs.to_owned(),
        target: design::rootfs_in_share(id),
        recursive: true,
        read_only: ReadOnly::Nothing,
        ids: None,
    };
    let mut trees = Vec::new();
    for bind in std::iter::once(&root).chain(&guest.binds) {
        let target = bind
            .target
            .strip_prefix(id.as_str())
            .unwrap_or(&bind.target);
        trees.push((Tree::open(bind)?, target.to_owned()));
    }
    Ok(trees)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_needs_somebody_to_have_it() {
        let socket = Path::new("/s");
        assert_eq!(
            console(true, Some(socket), true).unwrap(),
            Console::Socket(socket)
        );
        assert_eq!(console(true, None, false).unwrap(), Console::Ours);
        assert_eq!(console(false, None, true).unwrap(), Console::Streams);
        assert!(matches!(
            console(true, None, true),
            Err(OciError::NoConsole)
        ));
        assert!(matches!(
            console(false, Some(socket), true),
            Err(OciError::UselessConsole)
        ));
    }

    #[test]
    fn a_pid_file_has_the_number_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        write_pid(&file, 42).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "42");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
