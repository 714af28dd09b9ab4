//! What a unit printed under a runtime, kept in `.build/conformance`, so that an interrupted run goes on where it was.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::runtime::Runtime;
use super::suite::Unit;
use crate::workspace::{Workspace, make_dir};

/// The outcome of one unit with one runtime.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Of what it was made: suites, host and runtime. With another it counts no more.
    pub stamp: String,
    /// Its exit status; 124 if it ran out of time.
    pub code: i32,
    /// How long it took.
    pub seconds: u64,
    /// What it printed.
    pub output: String,
    /// And complained about.
    pub complaints: String,
}

/// The folder of records.
#[derive(Debug)]
pub struct Records(PathBuf);

impl Records {
    /// Those of this checkout.
    pub fn of(workspace: &Workspace) -> Self {
        Self(workspace.root.join(".build/conformance"))
    }

    /// The folder, for people.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    fn path(&self, runtime: Runtime, unit: &Unit) -> PathBuf {
        let file = format!("{}/{}.json", runtime.name(), unit.key());
        self.0.join(file)
    }

    /// What is known of a unit, if it was made with the same `stamp`.
    pub fn load(&self, runtime: Runtime, unit: &Unit, stamp: &str) -> Option<Record> {
        let text = fs::read(self.path(runtime, unit)).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        (record.stamp == stamp).then_some(record)
    }

    /// Keeps it, in place of an older one.
    pub fn save(&self, runtime: Runtime, unit: &Unit, record: &Record) -> Result<()> {
        let path = self.path(runtime, unit);
        make_dir(path.parent().context("a record needs a folder")?)?;
        let partial = path.with_extension("partial");
        fs::write(&partial, serde_json::to_vec_pretty(record)?)?;
        fs::rename(&partial, &path).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::conformance::suite::Suite;

    #[test]
    fn record_of_another_build_counts_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records(dir.path().to_owned());
        let unit = Unit {
            suite: Suite::Bats,
            name: "exec".into(),
        };
        let record = Record {
            stamp: "old".into(),
            code: 0,
            seconds: 3,
            output: "ok 1 a\n".into(),
            complaints: String::new(),
        };
        records.save(Runtime::Runc, &unit, &record).unwrap();
        assert_eq!(records.load(Runtime::Runc, &unit, "old"), Some(record));
        assert_eq!(records.load(Runtime::Runc, &unit, "new"), None);
        assert_eq!(records.load(Runtime::Crun, &unit, "old"), None);
    }
}
