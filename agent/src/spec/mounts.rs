//! Mounts of a container (OCI runtime-spec config.md#mounts): options that can't be had are refused, and what libcontainer 0.7
//! leaves out is put aside for [`crate::executor`]'s last touches.

use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize};

use super::SpecError;

/// What is to be done to a mount after libcontainer has made it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touch {
    /// `mounts[3] (/data)`, for messages.
    pub field: String,
    /// In the container.
    pub destination: PathBuf,
    /// Flags of mount(2) for its propagation, 0 for none.
    pub propagation: u64,
    /// Attributes of mount_setattr(2).
    pub set: u64,
    pub clear: u64,
    /// Fill it with what the directory below it holds.
    pub copy_up: bool,
}

/// Attributes that libcontainer sets and never takes away, so a bind of a read-only mount could not be writable.
const CLEARED: &[(&str, u64)] = &[
    ("rw", libc::MOUNT_ATTR_RDONLY),
    ("suid", libc::MOUNT_ATTR_NOSUID),
    ("dev", libc::MOUNT_ATTR_NODEV),
    ("exec", libc::MOUNT_ATTR_NOEXEC),
    ("symfollow", libc::MOUNT_ATTR_NOSYMFOLLOW),
];

/// Propagation that differs from what every mount has anyway: no mount of the agent's is shared, so none is a slave either.
const PROPAGATION: &[(&str, libc::c_ulong)] = &[
    ("shared", libc::MS_SHARED),
    ("rshared", libc::MS_SHARED | libc::MS_REC),
    ("unbindable", libc::MS_UNBINDABLE),
    ("runbindable", libc::MS_UNBINDABLE | libc::MS_REC),
];

/// Options that libcontainer applies.
const APPLIED: &[&str] = &[
    "defaults",
    "bind",
    "rbind",
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "rro",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "ratime",
    "rnoatime",
    "rdiratime",
    "rnodiratime",
    "rrelatime",
    "rnorelatime",
    "rstrictatime",
    "rnostrictatime",
    "rnosymfollow",
    "rsymfollow",
];

/// Without an effect in any file system that a guest can mount: `mand` is gone since Linux 5.15, and a slave of a mount that is not
/// shared is private.
const WITHOUT_EFFECT: &[&str] = &[
    "silent",
    "loud",
    "mand",
    "nomand",
    "async",
    "iversion",
    "noiversion",
    "lazytime",
    "nolazytime",
    "private",
    "rprivate",
    "slave",
    "rslave",
];

/// Where every write is in memory only, or none can be.
const IN_MEMORY: &[&str] = &[
    "tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs", "devtmpfs",
];

/// Mounts the guest's own sysfs where a new one can't be: only who owns the network namespace may make one, and who has a user
/// namespace and the pod's network does not (fs/sysfs/mount.c). Engines do the same for the host's network.
pub fn bind_sysfs(mounts: &mut [Mount]) {
    for mount in mounts.iter_mut() {
        if mount.typ().as_deref() == Some("sysfs") {
            let mut options = mount.options().clone().unwrap_or_default();
            options.push("rbind".into());
            mount
                .set_typ(Some("bind".into()))
                .set_source(Some("/sys".into()))
                .set_options(Some(options));
        }
    }
}

/// Checks the mounts and takes out of them what is for the last touches.
///
/// # Errors
/// The mount and the option that can't be had.
pub fn fit(mounts: &mut [Mount]) -> Result<Vec<Touch>, SpecError> {
    let mut touches = Vec::new();
    for (number, mount) in mounts.iter_mut().enumerate() {
        let field = format!("mounts[{number}] ({})", mount.destination().display());
        let touch = fit_one(field.clone(), mount)
            .map_err(|why| SpecError::Value(format!("{field}: {why}")))?;
        if (Touch {
            field: String::new(),
            destination: PathBuf::new(),
            ..touch.clone()
        }) != Touch::default()
        {
            touches.push(touch);
        }
    }
    Ok(touches)
}

fn fit_one(field: String, mount: &mut Mount) -> Result<Touch, String> {
    let options = mount.options().clone().unwrap_or_default();
    let kind = mount.typ().clone().unwrap_or_default();
    let bind = kind == "bind" || options.iter().any(|o| o == "bind" || o == "rbind");
    if kind.is_empty() && !bind {
        return Err("needs a type, or the option bind".into());
    }
    if mount.source().is_none() {
        if bind {
            return Err("a bind mount needs a source".into());
        }
        mount.set_source(Some(PathBuf::from(&kind)));
    }
    if mount.uid_mappings().is_some() || mount.gid_mappings().is_some() {
        return Err("uidMappings and gidMappings: the host maps the ids of a share".into());
    }
    let mut touch = Touch {
        field,
        destination: mount.destination().clone(),
        ..Touch::default()
    };
    let mut kept = Vec::new();
    for option in options {
        match option.as_str() {
            "idmap" | "ridmap" => {
                return Err(format!("{option}: the host maps the ids of a share"));
            }
            "remount" => return Err("remount: there is nothing mounted yet".into()),
            "tmpcopyup" if kind == "tmpfs" => touch.copy_up = true,
            "nosymfollow" => touch.set |= libc::MOUNT_ATTR_NOSYMFOLLOW,
            "sync" | "dirsync" if bind || IN_MEMORY.contains(&kind.as_str()) => {}
            name if WITHOUT_EFFECT.contains(&name) => {}
            name => {
                let clear = CLEARED
                    .iter()
                    .find(|(n, _)| *n == name)
                    .map_or(0, |(_, flag)| *flag);
                let propagation = PROPAGATION.iter().find(|(n, _)| *n == name);
                touch.clear |= if bind { clear } else { 0 };
                if let Some((_, flags)) = propagation {
                    touch.propagation = *flags;
                } else if APPLIED.contains(&name) {
                    kept.push(option);
                } else if bind && known_to("tmpfs", name).is_ok() {
                    // mount(2), MS_BIND: what is for a file system is ignored; so does runc.
                } else if bind || name == "sync" || name == "dirsync" || name == "tmpcopyup" {
                    return Err(format!("unknown option {option:?}"));
                } else if name != "symfollow" {
                    known_to(&kind, name)?;
                    kept.push(option);
                }
            }
        }
    }
    touch.clear &= !set_later(&kept);
    mount.set_options((!kept.is_empty()).then_some(kept));
    Ok(touch)
}

/// Whether /dev is to be read-only, which libcontainer leaves out: it makes files there later than any touch, the console's last.
pub fn has_read_only_dev(mounts: &[Mount]) -> bool {
    let mut mounts = mounts.iter().rev();
    let dev = mounts.find(|mount| mount.destination() == Path::new("/dev"));
    let options = dev.and_then(|dev| dev.options().clone());
    set_later(&options.unwrap_or_default()) & libc::MOUNT_ATTR_RDONLY != 0
}

/// Of `rw` and `ro` the last one counts; what is set in the end must not be cleared.
fn set_later(kept: &[String]) -> u64 {
    let opposites = [
        ("ro", "rw", libc::MOUNT_ATTR_RDONLY),
        ("nosuid", "suid", libc::MOUNT_ATTR_NOSUID),
        ("nodev", "dev", libc::MOUNT_ATTR_NODEV),
        ("noexec", "exec", libc::MOUNT_ATTR_NOEXEC),
    ];
    let last = |a: &str, b: &str| {
        kept.iter()
            .rev()
            .find(|o| *o == a || *o == b)
            .is_some_and(|o| o == a)
    };
    opposites
        .iter()
        .filter(|(set, clear, _)| last(set, clear))
        .map(|(_, _, flag)| flag)
        .fold(0, |all, flag| all | flag)
}

/// Options of the file systems that a container is sure to ask for; the kernel says of others what it does not know.
fn known_to(kind: &str, option: &str) -> Result<(), String> {
    let name = option.split('=').next().unwrap_or(option);
    let known: &[&str] = match kind {
        "tmpfs" => &[
            "size",
            "nr_blocks",
            "nr_inodes",
            "mode",
            "uid",
            "gid",
            "huge",
            "mpol",
            "inode32",
            "inode64",
            "noswap",
            "usrquota",
            "grpquota",
        ],
        "devpts" => &["newinstance", "ptmxmode", "mode", "uid", "gid", "max"],
        "proc" => &["hidepid", "gid", "subset"],
        "sysfs" | "mqueue" | "cgroup" | "cgroup2" => &[],
        _ => return Ok(()),
    };
    if known.contains(&name) {
        Ok(())
    } else {
        Err(format!("unknown option {option:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn fitted(mount: Value) -> Result<(Vec<String>, Option<Touch>), String> {
        let mut mounts: Vec<Mount> = serde_json::from_value(json!([mount])).unwrap();
        let touches = fit(&mut mounts).map_err(|e| e.to_string())?;
        Ok((
            mounts[0].options().clone().unwrap_or_default(),
            touches.into_iter().next(),
        ))
    }

    fn bind(options: Value) -> Result<(Vec<String>, Option<Touch>), String> {
        fitted(json!({ "destination": "/data", "source": "/s", "options": options }))
    }

    fn tmpfs(options: Value) -> Result<(Vec<String>, Option<Touch>), String> {
        fitted(
            json!({ "destination": "/tmp", "source": "tmpfs", "type": "tmpfs", "options": options }),
        )
    }

    #[test]
    fn what_engines_usually_ask_for_needs_no_touch() {
        let (kept, touch) = bind(json!(["rbind", "rprivate", "ro", "nosuid"])).unwrap();
        assert_eq!((kept.join(" ").as_str(), touch), ("rbind ro nosuid", None));
        let (kept, touch) = tmpfs(json!(["nosuid", "size=64k", "mode=1777"])).unwrap();
        assert_eq!(
            (kept.join(" ").as_str(), touch),
            ("nosuid size=64k mode=1777", None)
        );
    }

    #[test]
    fn what_libcontainer_leaves_out_is_put_aside() {
        let touch = bind(json!(["bind", "rshared", "exec", "nosymfollow"]))
            .unwrap()
            .1
            .unwrap();
        assert_eq!(touch.propagation, libc::MS_SHARED | libc::MS_REC);
        assert_eq!(touch.clear, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(touch.set, libc::MOUNT_ATTR_NOSYMFOLLOW);
        let (kept, touch) = tmpfs(json!(["tmpcopyup", "mode=0700"])).unwrap();
        assert!(touch.unwrap().copy_up && kept == ["mode=0700"]);
    }

    #[test]
    fn what_is_for_a_file_system_is_ignored_where_a_folder_is_bound() {
        let (kept, touch) = bind(json!(["bind", "size=1k", "mode=755", "ro"])).unwrap();
        assert_eq!((kept.join(" ").as_str(), touch), ("bind ro", None));
    }

    #[test]
    fn of_two_opposites_the_last_counts() {
        assert_eq!(bind(json!(["bind", "rw", "ro"])).unwrap().1, None);
        let touch = bind(json!(["bind", "ro", "rw"])).unwrap().1.unwrap();
        assert_eq!(touch.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn a_read_only_dev_is_told_apart() {
        let dev = |options: Value| {
            let pts = json!({ "destination": "/dev/pts", "type": "devpts", "options": ["ro"] });
            let dev = json!({ "destination": "/dev", "type": "tmpfs", "options": options });
            let mounts: Vec<Mount> = serde_json::from_value(json!([dev, pts])).unwrap();
            has_read_only_dev(&mounts)
        };
        assert!(dev(json!(["nosuid", "ro"])));
        assert!(!dev(json!(["ro", "rw"])) && !dev(json!(["nosuid"])));
    }

    #[test]
    fn what_can_not_be_had_is_named() {
        for (made, word) in [
            (bind(json!(["bind", "sizzle=1"])), "sizzle=1"),
            (bind(json!(["bind", "idmap"])), "idmap"),
            (bind(json!(["bind", "tmpcopyup"])), "tmpcopyup"),
            (tmpfs(json!(["sizzle=1"])), "sizzle=1"),
            (
                fitted(json!({ "destination": "/x", "source": "y" })),
                "type",
            ),
        ] {
            let error = made.unwrap_err();
            assert!(
                error.contains("mounts[0] (/") && error.contains(word),
                "{error}"
            );
        }
    }
}
