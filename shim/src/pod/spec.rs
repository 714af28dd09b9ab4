//! The OCI spec of a container that a person runs: an image's defaults, the person's wishes, and Docker's confinement.

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{
    ContainerId,
    capabilities::{self, NoSuchCapability},
    design,
    options::{CpuLimit, MemoryLimit, Volume},
    seccomp,
};

/// What an image says about its process (`image-spec config.md`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// First words of the command.
    pub entrypoint: Vec<String>,
    /// The words after it, unless the user gives their own.
    pub cmd: Vec<String>,
    /// `K=V`.
    pub env: Vec<String>,
    /// Empty for `/`.
    pub working_dir: String,
    /// `user[:group]`, names or numbers; empty for root.
    pub user: String,
}

/// What a person asks of a container, beside its image.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The command's words; empty for the image's.
    pub command: Vec<String>,
    /// Replaces the image's entrypoint (and discards its cmd).
    pub entrypoint: Option<String>,
    /// `K=V`, over the image's.
    pub env: Vec<String>,
    /// Instead of the image's.
    pub working_dir: Option<String>,
    /// The UTS host name.
    pub hostname: Option<String>,
    /// Attach a terminal.
    pub terminal: bool,
    /// The root file system refuses writes.
    pub read_only: bool,
    /// Memory limit of the container.
    pub memory: Option<MemoryLimit>,
    /// CPU limit of the container.
    pub cpus: Option<CpuLimit>,
    /// Most processes and threads.
    pub pids: Option<u32>,
    /// Capabilities to add, `CAP_` optional, or `ALL`.
    pub cap_add: Vec<String>,
    /// Capabilities to drop, likewise.
    pub cap_drop: Vec<String>,
    /// Host directories and files, sources absolute.
    pub volumes: Vec<Volume>,
    /// How many disks the VM has: `/dev/vda` and on.
    pub disks: usize,
}

/// A user as the image's `/etc/passwd` resolves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
    /// Home directory, if `/etc/passwd` names one.
    pub home: Option<String>,
}

/// Why no spec can be made.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither image nor user says what to run.
    #[error("no command given, and the image has none")]
    NoCommand,
    /// Not a capability.
    #[error(transparent)]
    Capability(#[from] NoSuchCapability),
    /// Our own template and oci-spec disagree.
    #[error("the container's spec can't be made")]
    Template(#[source] serde_json::Error),
    /// The working directory is relative.
    #[error("the working directory `{0}` is not an absolute path")]
    WorkingDir(String),
}

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/pstore",
];

const READONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Makes the spec. Paths in it are the host's: [`design::for_guest`] comes after.
///
/// # Errors
/// No command, an unknown capability.
pub fn for_people(
    id: &ContainerId,
    image: &ImageDefaults,
    wishes: &Wishes,
    user: &ResolvedUser,
) -> Result<Spec, SpecError> {
    let capabilities = capabilities::held(&wishes.cap_add, &wishes.cap_drop)?;
    let working_dir = working_dir(image, wishes)?;
    // Docker drops the effective capabilities of users other than root; the bounding set stays.
    let held: &[String] = if user.uid == 0 { &capabilities } else { &[] };
    let spec = json!({
        "ociVersion": "1.2.0",
        "hostname": hostname(id, wishes),
        "root": {"path": "rootfs", "readonly": wishes.read_only},
        "process": {
            "terminal": wishes.terminal,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids},
            "args": command(image, wishes)?,
            "env": environment(id, image, wishes, user),
            "cwd": working_dir,
            "capabilities": {"bounding": capabilities, "permitted": held, "effective": held},
            "noNewPrivileges": false,
            "oomScoreAdj": 0,
        },
        "mounts": mounts(id, &wishes.volumes),
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "resources": resources(wishes),
            "devices": disk_nodes(wishes.disks),
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READONLY_PATHS,
            "seccomp": seccomp::default_profile(&capabilities),
        },
    });
    serde_json::from_value(spec).map_err(SpecError::Template)
}

/// The UTS host name: the user's, or the container's name.
pub fn hostname(id: &ContainerId, wishes: &Wishes) -> String {
    wishes.hostname.clone().unwrap_or_else(|| id.to_string())
}

fn command(image: &ImageDefaults, wishes: &Wishes) -> Result<Vec<String>, SpecError> {
    let mut words = match &wishes.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.clone()],
        None => image.entrypoint.clone(),
    };
    if !wishes.command.is_empty() {
        words.extend_from_slice(&wishes.command);
    } else if wishes.entrypoint.is_none() {
        words.extend_from_slice(&image.cmd);
    }
    if words.is_empty() {
        Err(SpecError::NoCommand)
    } else {
        Ok(words)
    }
}

fn working_dir(image: &ImageDefaults, wishes: &Wishes) -> Result<String, SpecError> {
    let chosen = wishes.working_dir.as_deref().unwrap_or(&image.working_dir);
    match chosen {
        "" => Ok("/".to_owned()),
        absolute if absolute.starts_with('/') => Ok(absolute.to_owned()),
        relative => Err(SpecError::WorkingDir(relative.to_owned())),
    }
}

fn environment(
    id: &ContainerId,
    image: &ImageDefaults,
    wishes: &Wishes,
    user: &ResolvedUser,
) -> Vec<String> {
    let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
    let mut variables = vec![
        DEFAULT_PATH.to_owned(),
        format!("HOSTNAME={}", hostname(id, wishes)),
        format!("HOME={home}"),
    ];
    if wishes.terminal {
        variables.push("TERM=xterm".to_owned());
    }
    for variable in image.env.iter().chain(&wishes.env) {
        let key = variable.split('=').next().unwrap_or_default();
        variables.retain(|existing| existing.split('=').next() != Some(key));
        variables.push(variable.clone());
    }
    variables
}

fn mounts(id: &ContainerId, volumes: &[Volume]) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    mounts.push(
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                       "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
    );
    for name in crate::pod::place::ETC_FILES {
        let source =
            design::guest_path(&std::path::Path::new(id.as_str()).join("files").join(name));
        mounts.push(json!({"destination": format!("/etc/{name}"), "type": "bind", "source": source, "options": ["bind"]}));
    }
    for volume in volumes {
        // People who ask for that mean all that they see there.
        let mode = if volume.read_only { "rro" } else { "rw" };
        mounts.push(
            json!({"destination": volume.destination, "type": "bind", "source": volume.source,
                           "options": ["rbind", mode]}),
        );
    }
    mounts
}

fn resources(wishes: &Wishes) -> Value {
    let mut devices = vec![json!({"allow": false, "access": "rwm"})];
    devices.extend((0..wishes.disks).map(
        |index| json!({"allow": true, "type": "b", "major": VIRTBLK_MAJOR, "minor": disk_minor(index), "access": "rwm"}),
    ));
    let mut resources = json!({"devices": devices});
    if let Some(limit) = wishes.memory {
        // Swap equal to memory: there is none in the guest, and none is to be counted.
        resources["memory"] = json!({"limit": limit.bytes(), "swap": limit.bytes()});
    }
    if let Some(limit) = wishes.cpus {
        resources["cpu"] = json!({"quota": u64::from(limit.millis()) * 100, "period": 100_000});
    }
    if let Some(limit) = wishes.pids {
        resources["pids"] = json!({"limit": limit});
    }
    resources
}

/// The guest kernel's virtio-blk is its only block driver with a dynamic major number, so it gets the first: 254.
const VIRTBLK_MAJOR: i64 = 254;

/// Each disk has 16 minors for its partitions (drivers/block/virtio_blk.c, PART_BITS).
fn disk_minor(index: usize) -> usize {
    index * 16
}

fn disk_nodes(count: usize) -> Vec<Value> {
    (0..count)
        .zip('a'..='z')
        .map(|(index, letter)| {
            json!({"path": format!("/dev/vd{letter}"), "type": "b", "major": VIRTBLK_MAJOR,
                   "minor": disk_minor(index), "fileMode": 0o660, "uid": 0, "gid": 0})
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ContainerId {
        "web".parse().unwrap()
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> ImageDefaults {
        ImageDefaults {
            entrypoint: words(&["/init"]),
            cmd: words(&["serve"]),
            env: words(&["PATH=/bin", "A=1"]),
            ..Default::default()
        }
    }

    fn args(wishes: Wishes) -> Vec<String> {
        command(&image(), &wishes).unwrap()
    }

    #[test]
    fn commands_are_put_together_as_docker_does() {
        assert_eq!(args(Wishes::default()), ["/init", "serve"]);
        assert_eq!(
            args(Wishes {
                command: words(&["x"]),
                ..Default::default()
            }),
            ["/init", "x"]
        );
        let entrypoint = Some("/bin/sh".to_owned());
        assert_eq!(
            args(Wishes {
                entrypoint,
                ..Default::default()
            }),
            ["/bin/sh"]
        );
    }

    #[test]
    fn an_image_without_command_needs_one() {
        let error = command(&ImageDefaults::default(), &Wishes::default());
        assert!(matches!(error, Err(SpecError::NoCommand)));
    }

    #[test]
    fn the_users_environment_wins() {
        let wishes = Wishes {
            env: words(&["A=2"]),
            ..Default::default()
        };
        let variables = environment(&id(), &image(), &wishes, &ResolvedUser::default());
        assert_eq!(variables, ["HOSTNAME=web", "HOME=/", "PATH=/bin", "A=2"]);
    }

    #[test]
    fn the_whole_spec_is_valid_and_confined() {
        let wishes = Wishes {
            memory: Some("64M".parse().unwrap()),
            cpus: Some("0.5".parse().unwrap()),
            pids: Some(50),
            disks: 2,
            ..Default::default()
        };
        let spec = for_people(&id(), &image(), &wishes, &ResolvedUser::default()).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        assert!(linux.seccomp().is_some());
        assert_eq!(linux.devices().as_ref().unwrap().len(), 2);
        let resources = linux.resources().as_ref().unwrap();
        assert_eq!(resources.memory().as_ref().unwrap().limit(), Some(64 << 20));
        assert_eq!(resources.cpu().as_ref().unwrap().quota(), Some(50_000));
        let guest = design::for_guest(spec, &id(), std::path::Path::new("/")).unwrap();
        assert!(guest.binds.is_empty());
    }

    #[test]
    fn other_users_hold_no_capabilities() {
        let user = ResolvedUser {
            uid: 1000,
            gid: 1000,
            ..Default::default()
        };
        let spec = for_people(&id(), &image(), &Wishes::default(), &user).unwrap();
        let process = spec.process().as_ref().unwrap();
        let held = process.capabilities().as_ref().unwrap().effective().clone();
        assert!(held.is_none_or(|set| set.is_empty()));
    }
}
