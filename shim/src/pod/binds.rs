//! What of the host a container's bind mounts need in the pod's share.
//!
//! Each becomes a directory of the share (`<id>/volumes/<n>`), mounted there on the host and named by its guest path in the
//! spec that the agent gets.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, Mount};
use serde::{Deserialize, Serialize};

use super::{
    ContainerId,
    design::{DesignError, GUEST_SHARE, guest_path},
    idmap::{self, IdMap},
};

/// A file or directory of the host to be bind-mounted into the pod's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostBind {
    /// On the host, absolute.
    pub source: PathBuf,
    /// Relative to the share.
    pub target: PathBuf,
    /// Submounts come along (`rbind`).
    pub recursive: bool,
    /// Where writes are refused, on the host as well.
    pub read_only: ReadOnly,
    /// Other ids than on disk.
    pub ids: Option<IdMap>,
}

/// What of a bind mount can't be written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadOnly {
    /// All of it can.
    Nothing,
    /// The mount itself; what is mounted below it is as it is on the host (`ro`).
    Top,
    /// And what is mounted below it (`rro`).
    All,
}

/// Makes a bind mount of the host one of the share, and notes what must be placed there; `linux` is the container's. What is
/// below [`GUEST_SHARE`] already is left alone, as are other mounts.
///
/// # Errors
/// What of it can't be had.
pub fn rewrite(
    mount: &mut Mount,
    id: &ContainerId,
    base: &Path,
    linux: Option<&Linux>,
    binds: &mut Vec<HostBind>,
) -> Result<(), DesignError> {
    let named = format!("mounts: {}", mount.destination().display());
    let refuse = |why: String| DesignError::Unsupported(format!("{named}: {why}"));
    let options = mount.options().clone().unwrap_or_default();
    let has = |name: &str| options.iter().any(|option| option == name);
    let recursive = has("rbind");
    let is_bind = recursive || has("bind") || mount.typ().as_deref() == Some("bind");
    let ids = idmap::take(mount, is_bind, linux).map_err(refuse)?;
    if !is_bind {
        return Ok(());
    }
    let source = mount.source().clone();
    let source = source.ok_or_else(|| refuse("a bind mount needs a source".into()))?;
    if source.starts_with(GUEST_SHARE) {
        return match ids {
            None => Ok(()),
            Some(_) => Err(refuse("what is in the share already keeps its ids".into())),
        };
    }
    let target = Path::new(id.as_str())
        .join("volumes")
        .join(binds.len().to_string());
    mount.set_source(Some(guest_path(&target)));
    binds.push(HostBind {
        source: base.join(source),
        target,
        recursive,
        read_only: read_only(&options),
        ids,
    });
    Ok(())
}

/// Of `ro` and `rw` the last one counts. What `rro` and `rrw` say is done after that, and setting it after taking it away, as
/// runc does.
fn read_only(options: &[String]) -> ReadOnly {
    let has = |name: &str| options.iter().any(|option| option == name);
    let last = options.iter().rev().find(|o| *o == "ro" || *o == "rw");
    match last.map(String::as_str) {
        _ if has("rro") => ReadOnly::All,
        Some("ro") if !has("rrw") => ReadOnly::Top,
        _ => ReadOnly::Nothing,
    }
}

/// Has the host alone refuse writes to this read-only mount. What is mounted below it appears in the guest when somebody walks there,
/// and would then be as read-only as what is above it (Linux' finish_automount).
pub fn leave_to_host(mount: &mut Mount) {
    let mut options = mount.options().clone().unwrap_or_default();
    options.retain(|option| option != "ro");
    mount.set_options(Some(options));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The mounts rewritten, and what they need.
    fn rewritten(mounts: Value) -> Result<(Vec<Mount>, Vec<HostBind>), String> {
        let mut mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        let linux = json!({"uidMappings": map, "gidMappings": map});
        let linux: Linux = serde_json::from_value(linux).unwrap();
        let (id, base) = ("web".parse().unwrap(), Path::new("/bundle"));
        let mut binds = Vec::new();
        for mount in &mut mounts {
            rewrite(mount, &id, base, Some(&linux), &mut binds).map_err(|e| e.to_string())?;
        }
        Ok((mounts, binds))
    }

    #[test]
    fn bind_sources_become_guest_paths() {
        let (mounts, binds) = rewritten(json!([
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/a", "type": "bind", "source": "/host/a", "options": ["rbind", "ro"]},
            {"destination": "/b", "type": "none", "source": "b", "options": ["bind"]},
        ]))
        .unwrap();
        let bind = |source: &str, n: &str, recursive, read_only| HostBind {
            source: source.into(),
            target: Path::new("web/volumes").join(n),
            recursive,
            read_only,
            ids: None,
        };
        assert_eq!(
            binds,
            [
                bind("/host/a", "0", true, ReadOnly::Top),
                bind("/bundle/b", "1", false, ReadOnly::Nothing)
            ]
        );
        let source = |mount: &Mount| mount.source().clone().unwrap();
        assert_eq!(source(&mounts[0]), Path::new("proc"));
        assert_eq!(
            source(&mounts[2]),
            Path::new("/run/vmbox/shares/vmbox/web/volumes/1")
        );
    }

    #[test]
    fn ids_are_mapped_on_the_host_and_the_guest_is_not_told() {
        let (mounts, binds) = rewritten(json!([
            {"destination": "/a", "source": "/host/a", "options": ["rbind", "ridmap"]},
            {"destination": "/b", "source": "/host/b", "options": ["bind"],
             "uidMappings": [{"containerID": 1, "hostID": 2, "size": 3}],
             "gidMappings": [{"containerID": 4, "hostID": 5, "size": 6}]},
        ]))
        .unwrap();
        let ids: Vec<&IdMap> = binds.iter().flat_map(|bind| &bind.ids).collect();
        assert!(ids[0].recursive && !ids[1].recursive);
        assert_eq!(ids[0].uids[0].host_id(), 100_000);
        assert_eq!(ids[1].gids[0].host_id(), 5);
        let told = serde_json::to_value(mounts).unwrap();
        assert_eq!(told[0]["options"], json!(["rbind"]));
        assert!(told[1].get("uidMappings").is_none() && told[1].get("gidMappings").is_none());
    }

    #[test]
    fn a_mount_that_can_not_be_had_is_named() {
        for (mount, why) in [
            (
                json!({"destination": "/t", "type": "tmpfs", "options": ["idmap"]}),
                "mounts: /t: only a bind mount can have its ids mapped",
            ),
            (
                json!({"destination": "/t", "options": ["bind"]}),
                "mounts: /t: a bind mount needs a source",
            ),
            (
                json!({"destination": "/t", "options": ["bind", "idmap"], "source": "/run/vmbox/shares/vmbox/x"}),
                "mounts: /t: what is in the share already keeps its ids",
            ),
        ] {
            let message = rewritten(json!([mount])).unwrap_err();
            assert_eq!(message, format!("config.json: {why}"));
        }
    }

    #[test]
    fn of_options_that_disagree_about_writing_runcs_choice_counts() {
        for (options, expected) in [
            ("ro", ReadOnly::Top),
            ("ro rw", ReadOnly::Nothing),
            ("rw ro", ReadOnly::Top),
            ("ro rro", ReadOnly::All),
            ("rro rw", ReadOnly::All),
            ("ro rrw", ReadOnly::Nothing),
            ("rro rrw", ReadOnly::All),
            ("", ReadOnly::Nothing),
        ] {
            let words: Vec<String> = options.split(' ').map(Into::into).collect();
            assert_eq!(read_only(&words), expected, "{options}");
        }
    }
}
