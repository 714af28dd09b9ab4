//! What of the host a container's bind mounts need in the pod's share.
//!
//! Each becomes a directory of the share (`<id>/volumes/<n>`), mounted there on the host and named by its guest path in the
//! spec that the agent gets.

use std::path::{Path, PathBuf};

use oci_spec::runtime::Mount;

use super::{
    ContainerId,
    design::{DesignError, GUEST_SHARE, guest_path},
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
    /// Writes are refused on the host as well.
    pub read_only: bool,
}

/// Makes a bind mount of the host one of the share, and notes what must be placed there. What is below [`GUEST_SHARE`] already
/// is left alone, as are other mounts.
///
/// # Errors
/// It has no source.
pub fn rewrite(
    mount: &mut Mount,
    id: &ContainerId,
    base: &Path,
    binds: &mut Vec<HostBind>,
) -> Result<(), DesignError> {
    let has = |name: &str| {
        mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == name)
    };
    let recursive = has("rbind");
    let is_bind = recursive || has("bind") || mount.typ().as_deref() == Some("bind");
    if !is_bind {
        return Ok(());
    }
    let destination = mount.destination().display().to_string();
    let source = mount.source().clone().ok_or_else(|| {
        DesignError::Unsupported(format!(
            "mounts: the bind mount on {destination} has no source"
        ))
    })?;
    if source.starts_with(GUEST_SHARE) {
        return Ok(());
    }
    let target = Path::new(id.as_str())
        .join("volumes")
        .join(binds.len().to_string());
    let read_only = has("ro") || has("rro");
    mount.set_source(Some(guest_path(&target)));
    binds.push(HostBind {
        source: base.join(source),
        target,
        recursive,
        read_only,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The mounts rewritten, and what they need.
    fn rewritten(mounts: Value) -> Result<(Vec<Mount>, Vec<HostBind>), String> {
        let mut mounts: Vec<Mount> = serde_json::from_value(mounts).unwrap();
        let id = "web".parse().unwrap();
        let mut binds = Vec::new();
        for mount in &mut mounts {
            rewrite(mount, &id, Path::new("/bundle"), &mut binds).map_err(|e| e.to_string())?;
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
        };
        assert_eq!(
            binds,
            [
                bind("/host/a", "0", true, true),
                bind("/bundle/b", "1", false, false)
            ]
        );
        let source = |mount: &Mount| mount.source().clone().unwrap();
        assert_eq!(source(&mounts[0]), Path::new("proc"));
        assert_eq!(
            source(&mounts[2]),
            Path::new("/run/vmbox/shares/vmbox/web/volumes/1")
        );
    }
}
