//! What is remembered of a container between commands: `<root>/<id>/state.json`, and the OCI state made of it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{cgroup::Cgroup, process::ProcessRef};
use crate::pod::size::Limits;

/// How far a container was brought by our commands; whether its process still lives is another matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `create` works on it.
    Creating,
    /// `create` is done.
    Created,
    /// `start` is done.
    Running,
    /// `pause` is done.
    Paused,
    /// `delete` works on it.
    Deleting,
}

/// runtime.md#state, and `paused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// `create` works on it.
    Creating,
    /// Its process waits for `start`.
    Created,
    /// Its process runs.
    Running,
    /// Its processes stand still.
    Paused,
    /// Its process has ended.
    Stopped,
}

impl Status {
    /// Its name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container as it was last written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Of its config.json.
    pub oci_version: String,
    /// Its id.
    pub id: String,
    /// Absolute.
    pub bundle: PathBuf,
    /// On the host, absolute.
    pub rootfs: PathBuf,
    /// RFC 3339.
    pub created: String,
    /// User id of whoever created it.
    pub owner: u32,
    /// Of its config.json.
    pub annotations: BTreeMap<String, String>,
    /// The pod's directory, which has its VM.
    pub pod: PathBuf,
    /// That VM was made for another container, its sandbox.
    #[serde(default)]
    pub joined: bool,
    /// How far it was brought.
    pub phase: Phase,
    /// The process that stands for it.
    pub keeper: Option<ProcessRef>,
    /// Its cgroup on the host, unless it has none.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
    /// What it may use.
    #[serde(default)]
    pub limits: Limits,
    /// Its init process in the guest.
    pub guest_pid: u32,
    /// Hooks for later (config.md#posix-platform-hooks).
    pub hooks: Value,
}

/// runtime.md#state and runc's additions, in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct State<'a> {
    oci_version: &'a str,
    /// Its id.
    pub id: &'a str,
    /// 0 once it has stopped.
    pub pid: u32,
    /// runc's name of its status.
    pub status: &'static str,
    /// Absolute.
    pub bundle: &'a Path,
    rootfs: &'a Path,
    /// RFC 3339.
    pub created: &'a str,
    annotations: &'a BTreeMap<String, String>,
    /// The name of whoever created it.
    pub owner: String,
}

impl Record {
    /// Its status now.
    pub fn status(&self) -> Status {
        let lives = self.keeper.as_ref().is_some_and(ProcessRef::is_alive);
        match (self.phase, lives) {
            (Phase::Creating, true) => Status::Creating,
            (Phase::Created, true) => Status::Created,
            (Phase::Running, true) => Status::Running,
            (Phase::Paused, true) => Status::Paused,
            (Phase::Deleting, _) | (_, false) => Status::Stopped,
        }
    }

    /// The process id that the world sees: 0 once it is gone.
    pub fn pid(&self, status: Status) -> u32 {
        match (&self.keeper, status) {
            (Some(keeper), status) if status != Status::Stopped => keeper.pid,
            _ => 0,
        }
    }

    /// What `state` and `list` show.
    pub fn state(&self, status: Status) -> State<'_> {
        State {
            oci_version: &self.oci_version,
            id: &self.id,
            pid: self.pid(status),
            status: status.name(),
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
            owner: owner_name(self.owner),
        }
    }

    /// What a hook gets on its standard input.
    pub fn hook_state(&self, status: Status) -> Value {
        json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "pid": self.pid(status),
            "status": status.name(),
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
    }

    /// Reads the record in a container's directory.
    ///
    /// # Errors
    /// It is not there, or not one of ours.
    pub fn read(dir: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(file_in(dir))?)?)
    }

    /// Replaces the record in a container's directory, in one step. Anybody may read it.
    ///
    /// # Errors
    /// As the file system says; then the old one is still there.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join("state.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, file_in(dir))
    }
}

/// runc prints a name, not a number.
fn owner_name(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut users = passwd.lines().map(|line| line.split(':'));
    let found = users.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    found.unwrap_or_else(|| uid.to_string())
}

fn file_in(dir: &Path) -> PathBuf {
    dir.join("state.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: Phase, keeper: Option<ProcessRef>) -> Record {
        Record {
            oci_version: "1.2.0".into(),
            id: "web".into(),
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created: "1970-01-01T00:00:00Z".into(),
            owner: 0,
            annotations: BTreeMap::from([("a".into(), "b".into())]),
            pod: "/run/vmbox/p".into(),
            joined: false,
            phase,
            keeper,
            cgroup: None,
            limits: Limits::default(),
            guest_pid: 7,
            hooks: Value::Null,
        }
    }

    #[test]
    fn a_container_has_stopped_when_its_keeper_has() {
        let alive = ProcessRef::of(std::process::id()).unwrap();
        let dead = ProcessRef {
            start_ticks: alive.start_ticks - 1,
            ..alive
        };
        assert_eq!(
            record(Phase::Running, Some(alive)).status(),
            Status::Running
        );
        assert_eq!(record(Phase::Paused, Some(alive)).status(), Status::Paused);
        assert_eq!(record(Phase::Created, Some(dead)).status(), Status::Stopped);
        assert_eq!(record(Phase::Creating, None).status(), Status::Stopped);
    }

    #[test]
    fn a_stopped_container_has_no_pid() {
        let record = record(Phase::Running, None);
        let state = record.state(Status::Stopped);
        assert_eq!((state.pid, state.owner.as_str()), (0, "root"));
    }

    #[test]
    fn a_state_is_in_runcs_order() {
        let record = record(Phase::Running, None);
        let state = serde_json::to_string(&record.state(Status::Stopped)).unwrap();
        let fields = [
            "ociVersion",
            "id",
            "pid",
            "status",
            "bundle",
            "rootfs",
            "created",
            "annotations",
            "owner",
        ];
        let places = fields.map(|field| state.find(&format!("\"{field}\":")).unwrap());
        assert!(places.is_sorted(), "{state}");
    }

    #[test]
    fn records_survive_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(Phase::Created, None);
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), record);
    }
}
