//! Whose the streams of a process are: where its user and group lie in the guest (config-linux.md#user-namespace-mappings).

use std::fs;
use std::path::Path;

use libcontainer::oci_spec::runtime::{Linux, LinuxIdMapping, LinuxNamespaceType, Process};

/// User and group as the guest's root user namespace sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// So many ids from `inside` lie at `outside` and on.
#[derive(Debug, Clone, Copy)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl Owner {
    /// Of a container's first process: its user namespace is to be made, or is another container's, or the guest's.
    pub fn of_first(process: &Process, linux: &Linux) -> Self {
        let mut namespaces = linux.namespaces().iter().flatten();
        let users = namespaces.find(|n| n.typ() == LinuxNamespaceType::User);
        match users.map(|users| users.path().as_deref()) {
            None => Self::mapped(process, &[], &[]),
            Some(None) => {
                let ranges = |mappings: &Option<Vec<LinuxIdMapping>>| -> Vec<_> {
                    mappings.iter().flatten().map(range).collect()
                };
                let (uids, gids) = (ranges(linux.uid_mappings()), ranges(linux.gid_mappings()));
                Self::mapped(process, &uids, &gids)
            }
            // `/proc/PID/ns/user`, by now.
            Some(Some(path)) => match path.ancestors().nth(2) {
                Some(proc) => Self::beside(process, proc),
                None => Self::mapped(process, &[], &[]),
            },
        }
    }

    /// Of a process that will share the user namespace of the one whose directory in /proc is `proc`.
    pub fn beside(process: &Process, proc: &Path) -> Self {
        let ranges = |file| parse(&fs::read_to_string(proc.join(file)).unwrap_or_default());
        Self::mapped(process, &ranges("uid_map"), &ranges("gid_map"))
    }

    /// An id that is nowhere stays as it is.
    fn mapped(process: &Process, uids: &[Range], gids: &[Range]) -> Self {
        let user = process.user();
        Self {
            uid: map(user.uid(), uids),
            gid: map(user.gid(), gids),
        }
    }
}

fn range(mapping: &LinuxIdMapping) -> Range {
    Range {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        count: mapping.size(),
    }
}

/// Lines of user_namespaces(7), "uid_map": three numbers, of which the second is as the reader sees it.
fn parse(map: &str) -> Vec<Range> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some(Range {
            inside: numbers.next()??,
            outside: numbers.next()??,
            count: numbers.next()??,
        })
    };
    map.lines().filter_map(line).collect()
}

fn map(id: u32, ranges: &[Range]) -> u32 {
    ranges
        .iter()
        .find(|r| id >= r.inside && id - r.inside < r.count)
        .map_or(id, |r| r.outside.saturating_add(id - r.inside))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn process() -> Process {
        let process = json!({ "cwd": "/", "user": { "uid": 7, "gid": 8 } });
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn who_joins_anothers_users_is_mapped_as_that_one() {
        let proc = tempfile::tempdir().unwrap();
        let write = |name, text| fs::write(proc.path().join(name), text).unwrap();
        write("uid_map", "         0     100000        100\n");
        write(
            "gid_map",
            "         0     200000          5\n         5     300000         10\n",
        );
        let path = proc.path().join("ns/user");
        let linux = json!({ "namespaces": [{ "type": "user", "path": path }] });
        let owner = Owner::of_first(&process(), &serde_json::from_value(linux).unwrap());
        let expected = Owner {
            uid: 100_007,
            gid: 300_003,
        };
        assert_eq!(owner, expected);
    }

    #[test]
    fn in_the_guests_own_users_ids_are_what_they_are() {
        let expected = Owner { uid: 7, gid: 8 };
        assert_eq!(Owner::of_first(&process(), &Linux::default()), expected);
        assert_eq!(Owner::beside(&process(), Path::new("/no/such")), expected);
    }
}
