//! Whose ids a bind mount shows (runtime-spec config.md#posix-platform-mounts): `uidMappings` and `gidMappings` of the mount or,
//! for its options `idmap` and `ridmap` alone, of the container. The host maps, and the guest is told nothing of it.
//!
//! ```text
//! containerID on disk ── mount, host ──► hostID in the share ── user namespace, guest ──► an id of the container
//! ```

use oci_spec::runtime::{Linux, LinuxIdMapping, Mount};
use serde::{Deserialize, Serialize};

/// What the kernel takes (user_namespaces(7)).
const MOST_LINES: usize = 340;

/// How the ids of a mount are mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// Of users: 1 to 340, without overlaps.
    pub uids: Vec<LinuxIdMapping>,
    /// Of groups, likewise.
    pub gids: Vec<LinuxIdMapping>,
    /// Those of the mounts below it too (`ridmap`).
    pub recursive: bool,
}

/// Takes out of a mount what it says of ids; None if that is nothing.
///
/// # Errors
/// Why they can't be mapped so.
pub fn take(
    mount: &mut Mount,
    is_bind: bool,
    container: Option<&Linux>,
) -> Result<Option<IdMap>, String> {
    let recursive = take_option(mount);
    let own = (mount.uid_mappings().clone(), mount.gid_mappings().clone());
    mount.set_uid_mappings(None).set_gid_mappings(None);
    let (uids, gids) = match (own, recursive) {
        ((None, None), None) => return Ok(None),
        ((None, None), Some(_)) => of_container(container),
        (own, _) => own,
    };
    if !is_bind {
        return Err("only a bind mount can have its ids mapped".into());
    }
    Ok(Some(IdMap {
        uids: checked("uidMappings", uids)?,
        gids: checked("gidMappings", gids)?,
        recursive: recursive.unwrap_or(false),
    }))
}

/// Whether `idmap` or `ridmap` is asked for, and then whether recursively; the last one counts.
fn take_option(mount: &mut Mount) -> Option<bool> {
    let recursive = |option: &String| match option.as_str() {
        "idmap" => Some(false),
        "ridmap" => Some(true),
        _ => None,
    };
    let options = mount.options_mut().as_mut()?;
    let last = options.iter().rev().find_map(recursive);
    options.retain(|option| recursive(option).is_none());
    last
}

type Mappings = Option<Vec<LinuxIdMapping>>;

fn of_container(container: Option<&Linux>) -> (Mappings, Mappings) {
    container.map_or((None, None), |linux| {
        (linux.uid_mappings().clone(), linux.gid_mappings().clone())
    })
}

fn checked(field: &str, mappings: Mappings) -> Result<Vec<LinuxIdMapping>, String> {
    let lines = mappings.unwrap_or_default();
    if lines.is_empty() {
        return Err(format!(
            "{field}: none: ids are mapped by uidMappings and gidMappings of the mount, or with idmap by those of linux"
        ));
    }
    if lines.len() > MOST_LINES {
        return Err(format!(
            "{field}: {} are more than {MOST_LINES}, the most that Linux takes",
            lines.len()
        ));
    }
    let ranges = |first: fn(&LinuxIdMapping) -> u32| {
        let mut ranges: Vec<_> = lines.iter().map(|l| (first(l), l.size())).collect();
        ranges.sort_unstable();
        ranges
    };
    check_ranges(&ranges(LinuxIdMapping::container_id))
        .map_err(|why| format!("{field}: containerID {why}"))?;
    check_ranges(&ranges(LinuxIdMapping::host_id))
        .map_err(|why| format!("{field}: hostID {why}"))?;
    Ok(lines)
}

/// Of first id and size, sorted.
fn check_ranges(ranges: &[(u32, u32)]) -> Result<(), String> {
    // One past its last id; the id of all ones means none.
    let end = |(first, size): (u32, u32)| first.checked_add(size).filter(|_| size > 0);
    if let Some((first, size)) = ranges.iter().find(|range| end(**range).is_none()) {
        return Err(format!("{first}: {size} ids can't begin there"));
    }
    let overlap = |pair: &&[(u32, u32)]| end(pair[0]).is_some_and(|end| end > pair[1].0);
    match ranges.windows(2).find(overlap) {
        Some(pair) => Err(format!("{} and {}: they overlap", pair[0].0, pair[1].0)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn line(container: u32, host: u32, size: u32) -> Value {
        json!({ "containerID": container, "hostID": host, "size": size })
    }

    fn linux(mappings: &Value) -> Linux {
        serde_json::from_value(json!({ "uidMappings": mappings, "gidMappings": mappings })).unwrap()
    }

    /// Of a bind mount with these fields, in a container with a user namespace.
    fn taken(fields: Value) -> (Mount, Result<Option<IdMap>, String>) {
        let mut mount = json!({ "destination": "/data", "source": "/s" });
        let object = mount.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        let mut mount: Mount = serde_json::from_value(mount).unwrap();
        let container = linux(&json!([line(0, 100_000, 65536)]));
        let map = take(&mut mount, true, Some(&container));
        (mount, map)
    }

    #[track_caller]
    fn refusal(fields: Value) -> String {
        taken(fields).1.unwrap_err()
    }

    #[test]
    fn a_mount_that_says_nothing_of_ids_is_left_alone() {
        let (mount, map) = taken(json!({ "options": ["rbind", "ro"] }));
        assert_eq!(map, Ok(None));
        assert_eq!(mount.options().as_ref().unwrap(), &["rbind", "ro"]);
    }

    #[test]
    fn the_option_alone_maps_as_the_container() {
        for (option, recursive) in [("idmap", false), ("ridmap", true)] {
            let (mount, map) = taken(json!({ "options": ["rbind", option, "ro"] }));
            let map = map.unwrap().unwrap();
            assert_eq!(map.uids[0].host_id(), 100_000);
            assert_eq!((&map.gids, map.recursive), (&map.uids, recursive));
            assert_eq!(mount.options().as_ref().unwrap(), &["rbind", "ro"]);
        }
    }

    #[test]
    fn a_mounts_own_mappings_come_first_and_need_no_option() {
        let own = json!({ "uidMappings": [line(5, 7, 1)], "gidMappings": [line(6, 8, 1)] });
        let (mount, map) = taken(own.clone());
        let map = map.unwrap().unwrap();
        assert_eq!((map.uids[0].host_id(), map.gids[0].host_id()), (7, 8));
        assert!(!map.recursive);
        assert!(mount.uid_mappings().is_none() && mount.gid_mappings().is_none());
        let mut with_option = own;
        with_option["options"] = json!(["idmap", "bind", "ridmap"]);
        assert!(taken(with_option).1.unwrap().unwrap().recursive);
    }

    #[test]
    fn without_both_mappings_it_is_refused_as_by_runc() {
        let one = json!([line(0, 1, 1)]);
        let message = refusal(json!({ "uidMappings": one }));
        assert!(message.starts_with("gidMappings: none"), "{message}");
        let message = refusal(json!({ "gidMappings": one, "options": ["idmap"] }));
        assert!(message.starts_with("uidMappings: none"), "{message}");
        let message = refusal(json!({ "uidMappings": [], "gidMappings": one }));
        assert!(message.starts_with("uidMappings: none"), "{message}");
        let mut mount = taken(json!({})).0;
        mount.set_options(Some(vec!["bind".into(), "idmap".into()]));
        let message = take(&mut mount, true, Some(&linux(&Value::Null))).unwrap_err();
        assert!(message.contains("none"), "{message}");
    }

    #[test]
    fn only_bind_mounts_have_ids_of_the_host() {
        let mut mount = taken(json!({})).0;
        mount.set_options(Some(vec!["idmap".into()]));
        let message = take(&mut mount, false, None).unwrap_err();
        assert!(message.contains("bind mount"), "{message}");
    }

    #[test]
    fn what_the_kernel_would_not_take_is_named() {
        let refused = |lines: Vec<Value>| {
            let lines = json!(lines);
            refusal(json!({ "uidMappings": lines, "gidMappings": [line(0, 0, 1)] }))
        };
        let many = (0..341).map(|id| line(id, id, 1)).collect();
        assert!(refused(many).starts_with("uidMappings: 341"));
        assert!(refused(vec![line(0, 9, 0)]).contains("containerID 0: 0 ids"));
        assert!(refused(vec![line(0, u32::MAX, 1)]).contains("hostID 4294967295"));
        let message = refused(vec![line(4, 10, 1), line(0, 20, 5)]);
        assert_eq!(message, "uidMappings: containerID 0 and 4: they overlap");
        let message = refused(vec![line(0, 10, 5), line(9, 14, 1)]);
        assert_eq!(message, "uidMappings: hostID 10 and 14: they overlap");
    }
}
