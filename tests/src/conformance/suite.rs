//! The two suites: their units, which run one at a time, and what a unit's output says.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::tap::{Verdict, planned, points};

/// A suite of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    /// opencontainers/runtime-tools' validation programs; a unit is a program, and so is a test.
    RuntimeTools,
    /// runc's integration tests; a unit is a file of many tests.
    Bats,
}

/// A program or a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// What it is of.
    pub suite: Suite,
    /// Its name there.
    pub name: String,
}

impl Suite {
    /// In the order in which they run.
    pub const ALL: [Self; 2] = [Self::RuntimeTools, Self::Bats];

    /// As the scoreboard and the list of reasons call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RuntimeTools => "runtime-tools",
            Self::Bats => "bats",
        }
    }

    /// All of its units, found where the suites were built.
    pub fn units(self, suites: &Path) -> Result<Vec<Unit>> {
        let (folder, extension) = match self {
            Self::RuntimeTools => ("runtime-tools/validation", None),
            Self::Bats => ("bats/source/tests/integration", Some("bats")),
        };
        let folder = suites.join(folder);
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        let mut units = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path
                .file_stem()
                .map(|name| name.to_string_lossy().into_owned());
            if path.extension().and_then(|e| e.to_str()) == extension
                && let Some(name) = name
            {
                units.push(Unit { suite: self, name });
            }
        }
        units.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(units)
    }
}

impl Unit {
    /// `SUITE/NAME`.
    pub fn key(&self) -> String {
        format!("{}/{}", self.suite.name(), self.name)
    }

    /// Seconds after which it is ended; a test of a file of tests has 300 s for itself.
    pub fn limit_s(&self) -> u32 {
        match self.suite {
            Suite::RuntimeTools => 600,
            Suite::Bats => 3600,
        }
    }

    /// The tests in what it printed, by their keys; `code` is its exit status.
    pub fn verdicts(&self, code: i32, output: &str) -> Vec<(String, Verdict)> {
        let points = points(output);
        match self.suite {
            Suite::RuntimeTools => {
                let verdicts: Vec<_> = points.iter().map(|point| point.verdict).collect();
                vec![(self.key(), of_program(code, &verdicts))]
            }
            Suite::Bats => points
                .into_iter()
                .map(|point| {
                    (
                        format!("{}: {}", self.key(), point.description),
                        point.verdict,
                    )
                })
                .collect(),
        }
    }

    /// How many of the tests that it announced are not in what it printed; a program is one test, whatever it prints.
    pub fn unreached(&self, output: &str) -> usize {
        match self.suite {
            Suite::RuntimeTools => 0,
            Suite::Bats => planned(output).max(1).saturating_sub(points(output).len()),
        }
    }
}

/// A program passes if it ends well and none of its points failed; some say nothing when they pass.
fn of_program(code: i32, points: &[Verdict]) -> Verdict {
    let some_are = |verdict| points.contains(&verdict);
    if code != 0 || some_are(Verdict::Failed) {
        Verdict::Failed
    } else if some_are(Verdict::Skipped) && !some_are(Verdict::Passed) {
        Verdict::Skipped
    } else {
        Verdict::Passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(code: i32, output: &str) -> Verdict {
        let unit = Unit {
            suite: Suite::RuntimeTools,
            name: "kill".into(),
        };
        let verdicts = unit.verdicts(code, output);
        assert_eq!(verdicts.len(), 1);
        assert_eq!(verdicts[0].0, "runtime-tools/kill");
        verdicts[0].1
    }

    #[test]
    fn program_fails_with_any_of_its_points() {
        assert_eq!(program(0, "ok 1 - a\nnot ok 2 - b\n"), Verdict::Failed);
        assert_eq!(program(0, "ok 1 - a\nok 2 # SKIP b\n"), Verdict::Passed);
    }

    #[test]
    fn program_that_says_nothing_passes_by_its_exit_status() {
        assert_eq!(program(0, "TAP version 13\n1..0\n"), Verdict::Passed);
        assert_eq!(program(1, "TAP version 13\n"), Verdict::Failed);
    }

    #[test]
    fn program_that_could_try_nothing_is_skipped() {
        assert_eq!(program(0, "ok 1 # SKIP no cgroup v1\n"), Verdict::Skipped);
    }

    fn file() -> Unit {
        Unit {
            suite: Suite::Bats,
            name: "exec".into(),
        }
    }

    #[test]
    fn file_that_ends_early_is_found_out() {
        assert_eq!(file().unreached("1..2\nok 1 a\nok 2 b\n"), 0);
        assert_eq!(file().unreached("1..2\nok 1 a\n"), 1);
        assert_eq!(file().unreached("bats: command not found\n"), 1);
    }

    #[test]
    fn each_test_of_a_file_is_named_by_both() {
        let unit = file();
        let output = "1..2\r\nok 1 runc exec\r\nnot ok 2 runc exec --tty\r\n";
        let verdicts = unit.verdicts(1, output);
        let expected = [
            ("bats/exec: runc exec".to_owned(), Verdict::Passed),
            ("bats/exec: runc exec --tty".to_owned(), Verdict::Failed),
        ];
        assert_eq!(verdicts, expected);
    }
}
