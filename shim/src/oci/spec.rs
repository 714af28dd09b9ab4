//! `spec`: the config.json that runc writes (libcontainer/specconv/example.go).

use std::{fs::File, io::Write, path::Path};

use serde_json::{Value, json};

use super::{args::SpecArgs, error::OciError};

/// Writes it, where none is yet.
///
/// # Errors
/// One is there, or the file system refuses.
pub fn spec(args: &SpecArgs) -> Result<(), OciError> {
    if args.rootless {
        return Err(OciError::Refused(
            "--rootless: vmbox needs root on the host; a container's user namespace is the guest's"
                .into(),
        ));
    }
    let dir = args.bundle.as_deref().unwrap_or(Path::new("."));
    let path = dir.join("config.json");
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AlreadyExists => {
            OciError::Refused("File config.json exists. Remove it first".into())
        }
        _ => OciError::Host {
            what: format!("write {}", path.display()),
            source,
        },
    };
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(failed)?;
    let text = serde_json::to_string_pretty(&example()).unwrap_or_default();
    file.write_all(text.as_bytes()).map_err(failed)
}

fn example() -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "vmbox",
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "cgroup"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

fn mounts() -> Value {
    json!([
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
         "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
         "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
         "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
         "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(dir: &Path, rootless: bool) -> SpecArgs {
        SpecArgs {
            bundle: Some(dir.to_owned()),
            rootless,
        }
    }

    #[test]
    fn the_example_is_a_spec() {
        let dir = tempfile::tempdir().unwrap();
        spec(&args(dir.path(), false)).unwrap();
        let read = crate::user::read_spec(dir.path()).unwrap();
        assert_eq!(read.version(), "1.2.0");
        assert!(spec(&args(dir.path(), false)).is_err());
    }

    #[test]
    fn rootless_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(spec(&args(dir.path(), true)).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
