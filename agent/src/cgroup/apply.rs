//! Writes limits to a cgroup, all or none: when one can't be had, every file is as it was.

use std::fs;
use std::io;
use std::path::Path;

use libcontainer::oci_spec::runtime::LinuxResources;

use super::limits::{self, LimitError, Setting};

/// How to take limits back: lines to write to files, the last one first.
#[derive(Debug, Default)]
#[must_use]
pub struct Undo(Vec<(String, String)>);

impl Undo {
    /// Makes every file what it was.
    pub fn run(&self, cgroup: &Path) {
        for (file, line) in self.0.iter().rev() {
            let _ = write(cgroup, file, line);
        }
    }
}

/// Sets every limit that is named and leaves the others.
///
/// # Errors
/// The field that can't be had; then nothing has changed.
pub fn apply(cgroup: &Path, resources: &LinuxResources) -> Result<Undo, LimitError> {
    let current = |file: &str| fs::read_to_string(cgroup.join(file)).ok();
    let settings = limits::plan(resources, &current)?;
    let mut undo = Undo::default();
    match write_all(cgroup, &settings, &mut undo.0) {
        Ok(()) => Ok(undo),
        Err(error) => {
            undo.run(cgroup);
            Err(error)
        }
    }
}

/// Some values are allowed only after another has changed (a burst after a greater quota, a smaller quota after a smaller
/// burst), so what is refused with EINVAL is tried once more when all else is written.
fn write_all(
    cgroup: &Path,
    settings: &[Setting],
    undo: &mut Vec<(String, String)>,
) -> Result<(), LimitError> {
    let mut again = Vec::new();
    for setting in settings {
        match write_one(cgroup, setting, undo) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => again.push(setting),
            other => other.map_err(|error| failed(setting, &error))?,
        }
    }
    for setting in again {
        write_one(cgroup, setting, undo).map_err(|error| failed(setting, &error))?;
    }
    Ok(())
}

fn write_one(cgroup: &Path, setting: &Setting, undo: &mut Vec<(String, String)>) -> io::Result<()> {
    let before = fs::read_to_string(cgroup.join(&setting.file)).unwrap_or_default();
    write(cgroup, &setting.file, &setting.value)?;
    let lines = restoring(setting, &before).into_iter();
    undo.extend(lines.map(|line| (setting.file.clone(), line)));
    Ok(())
}

/// The lines that make a file what it was.
fn restoring(setting: &Setting, before: &str) -> Vec<String> {
    match &setting.key {
        None if before.trim().is_empty() => vec!["\n".into()],
        None => before.lines().map(Into::into).collect(),
        Some((key, without)) => {
            let line = before
                .lines()
                .find(|line| line.split(' ').next() == Some(key));
            vec![line.unwrap_or(without).into()]
        }
    }
}

fn write(cgroup: &Path, file: &str, value: &str) -> io::Result<()> {
    // Not fs::write: it would create a file that is missing, and say EACCES.
    let mut target = fs::OpenOptions::new().write(true).open(cgroup.join(file))?;
    io::Write::write_all(&mut target, value.as_bytes())
}

fn failed(setting: &Setting, error: &io::Error) -> LimitError {
    let why = match error.kind() {
        io::ErrorKind::NotFound => {
            format!("the guest's kernel has no {}", setting.file)
        }
        _ if error.raw_os_error() == Some(libc::ENODEV) => {
            format!("{:?}: no such block device in the guest", setting.value)
        }
        _ => format!("write {:?} to {}: {error}", setting.value, setting.file),
    };
    LimitError::new(setting.field.clone(), why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    fn set(directory: &tempfile::TempDir, resources: Value) -> Result<Undo, LimitError> {
        apply(
            directory.path(),
            &serde_json::from_value(resources).unwrap(),
        )
    }

    fn text(directory: &tempfile::TempDir, file: &str) -> String {
        fs::read_to_string(directory.path().join(file)).unwrap()
    }

    #[test]
    fn a_failure_leaves_every_value_as_it_was() {
        let group = cgroup(&[("memory.max", "max"), ("cpuset.cpus", "")]);
        let error = set(
            &group,
            json!({ "memory": { "limit": 5000 }, "cpu": { "cpus": "0" }, "pids": { "limit": 7 } }),
        );
        let message = error.unwrap_err().to_string();
        assert_eq!(
            message,
            "linux.resources.pids.limit: the guest's kernel has no pids.max"
        );
        // A plain file keeps the tail of what was longer; the kernel's takes each write for the whole value.
        assert!(text(&group, "memory.max").starts_with("max"));
        assert!(text(&group, "cpuset.cpus").starts_with('\n'));
    }

    #[test]
    fn what_is_not_named_is_not_touched() {
        let group = cgroup(&[("pids.max", ""), ("memory.max", "4096")]);
        let _undo = set(&group, json!({ "pids": { "limit": 7 } })).unwrap();
        assert_eq!(text(&group, "pids.max"), "7");
        assert_eq!(text(&group, "memory.max"), "4096");
    }

    #[test]
    fn a_devices_line_is_what_is_restored() {
        let of = |before| {
            let setting = Setting {
                field: String::new(),
                file: "io.max".into(),
                value: "8:0 rbps=1".into(),
                key: Some(("8:0".into(), "8:0 rbps=max".into())),
            };
            restoring(&setting, before)
        };
        assert_eq!(of("8:01 rbps=5\n8:0 rbps=4\n"), ["8:0 rbps=4"]);
        assert_eq!(of(""), ["8:0 rbps=max"]);
    }
}
