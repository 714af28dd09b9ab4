//! `delete`, and what `gc` does with containers that nobody will delete.

use std::path::{Path, PathBuf};

use super::{
    Context,
    cgroup::Cgroup,
    error::OciError,
    hooks::HostHooks,
    pods,
    record::{Phase, Record, Status},
    store::{self, EXIT, Held},
    verbs,
};
use crate::{
    pod::{ContainerId, place::PodDir},
    user::one_line,
};

/// Removes a container. Of several at the same time one does it, the others find it gone.
///
/// # Errors
/// It is not there, or runs and is not to be forced.
pub fn delete(context: &Context, id: &str, force: bool) -> Result<(), OciError> {
    let id = store::parse_id(id)?;
    let deleted =
        Held::of(&context.root, &id).and_then(|held| delete_held(context, held, &id, force));
    match deleted {
        Err(OciError::NotExist) if force => Ok(()),
        result => result,
    }
}

fn delete_held(
    context: &Context,
    held: Held,
    id: &ContainerId,
    force: bool,
) -> Result<(), OciError> {
    let record = match held.record() {
        Ok(record) => record,
        Err(OciError::NotExist) => {
            // Whoever created it was killed before it wrote anything down.
            held.remove()?;
            return Err(OciError::NotExist);
        }
        Err(error) => return Err(error),
    };
    let status = record.status();
    match status {
        Status::Stopped => {}
        Status::Creating | Status::Created => verbs::end(&record, id)?,
        Status::Running | Status::Paused if force => verbs::end(&record, id)?,
        Status::Running | Status::Paused => {
            return Err(OciError::NotStopped {
                id: record.id,
                status: status.name(),
            });
        }
    }
    remove(held, record, |error| context.warn(&one_line(&error)))?;
    context.note(|| format!("container {id}: removed"));
    Ok(())
}

/// Removes a container that has ended.
fn remove(held: Held, mut record: Record, warn: impl FnMut(OciError)) -> Result<(), OciError> {
    record.phase = Phase::Deleting;
    held.write(&record)?;
    let pod = PodDir::at(record.pod.clone());
    pods::leave(&pod, &record.id)?;
    // Its monitor goes on in the cgroup of one of them, should it be in ours.
    let mates = pods::members(&pod).unwrap_or_default();
    leave_cgroup(&record, &mates)?;
    let hooks: HostHooks = serde_json::from_value(record.hooks.clone()).unwrap_or_default();
    hooks.after_stop(&record.hook_state(Status::Stopped), warn);
    held.remove()
}

/// Removes a container's cgroup on the host; `mates` are the directories of those whose pod goes on.
///
/// # Errors
/// Somebody else has put a process there, or systemd does not let it go.
pub fn leave_cgroup(record: &Record, mates: &[PathBuf]) -> Result<(), OciError> {
    let Some(cgroup) = &record.cgroup else {
        return Ok(());
    };
    let mut mates = mates.iter().filter_map(|mate| Record::read(mate).ok());
    let heir = mates.find_map(|mate| mate.cgroup.filter(|other| other != cgroup));
    cgroup.remove(heir.as_ref().map(Cgroup::dir).as_deref())
}

/// Whether nobody will come back for the container in `dir`: its creation or deletion was broken off, or it ended without
/// anybody having seen how. One that ended in order waits for its engine.
fn is_abandoned(dir: &Path) -> bool {
    let Ok(record) = Record::read(dir) else {
        return true;
    };
    match record.phase {
        Phase::Creating | Phase::Deleting => true,
        Phase::Created | Phase::Running | Phase::Paused => {
            record.status() == Status::Stopped && !dir.join(EXIT).exists()
        }
    }
}

/// The containers of a dead command or keeper below `root`, none of which another command works on.
pub fn abandoned(root: &Path) -> Vec<Held> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| {
            let name = entry.file_name();
            let is_id = name
                .to_str()
                .is_some_and(|name| store::parse_id(name).is_ok());
            // A pod, or a container of `vmbox run`: the journal's.
            is_id && !entry.path().join("journal").exists()
        })
        .filter_map(|entry| Held::at_once(entry.path()))
        .filter(|held| is_abandoned(&held.dir))
        .collect()
}

/// Removes a container that is abandoned.
///
/// # Errors
/// Something of it can't be removed.
pub fn clear(held: Held) -> Result<(), OciError> {
    match held.record() {
        Ok(record) => {
            if let Some(keeper) = record.keeper {
                // Of a creation that was broken off: it waits for nobody.
                let _ = keeper.signal(rustix::process::Signal::KILL);
            }
            remove(held, record, drop)
        }
        Err(_) => held.remove(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(root: &Path, phase: &str) -> std::path::PathBuf {
        let dir = root.join("web");
        std::fs::create_dir(&dir).unwrap();
        let record = serde_json::json!({
            "oci_version": "1.2.0", "id": "web", "bundle": "/b", "rootfs": "/b/rootfs", "created": "", "owner": 0,
            "annotations": {}, "pod": root.join("pod-x"), "phase": phase, "keeper": null, "guest_pid": 0, "hooks": null,
        });
        std::fs::write(dir.join("state.json"), record.to_string()).unwrap();
        dir
    }

    #[test]
    fn a_container_that_ended_in_order_is_left_to_its_engine() {
        let root = tempfile::tempdir().unwrap();
        let dir = container(root.path(), "running");
        std::fs::write(dir.join(EXIT), "0\n").unwrap();
        assert!(abandoned(root.path()).is_empty());
    }

    #[test]
    fn a_container_whose_end_nobody_saw_is_cleared() {
        let root = tempfile::tempdir().unwrap();
        container(root.path(), "running");
        let held = abandoned(root.path()).pop().unwrap();
        clear(held).unwrap();
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_container_that_is_being_worked_on_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        container(root.path(), "creating");
        let _held = Held::of(root.path(), &"web".parse().unwrap()).unwrap();
        assert!(abandoned(root.path()).is_empty());
    }
}
