//! Running the system tests' programs, each where guests of its architecture run: on this machine, or dealt out to
//! several virtual hosts at once.
//!
//! ```text
//!   program --list ──► names, dealt out ──► host: program --exact NAMES ──► lines as they come, closing line last
//!                                     └───► host-1: …
//! ```

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};
use nix::sys::sysinfo::sysinfo;

use crate::arch::Arch;
use crate::debian;
use crate::host::{MEMORY_MIB, Model};
use crate::streams::Streams;
use crate::test_host::{self, TestHost};
use crate::workspace::{Workspace, say};

/// An architecture's system tests.
#[derive(Debug)]
pub struct Suite {
    /// Of the host and its guests.
    pub arch: Arch,
    /// The test runner.
    pub program: PathBuf,
}

/// How one run of a test runner ended.
#[derive(Debug)]
struct Outcome {
    code: i32,
    closing: String,
}

/// Runs all suites at once with the runner's `options` and what the user asked for. The runners' closing lines come last,
/// behind those of successes those of failures. Returns the highest exit code.
pub fn run(
    workspace: &Workspace,
    suites: &[Suite],
    options: &[&str],
    filter: &[String],
) -> Result<i32> {
    let most = hosts_at_once() / suites.len().max(1);
    let outcomes = at_once(suites, |suite| {
        let label = match suites {
            [_] => String::new(),
            _ => format!("{:8}| ", suite.arch),
        };
        let outcomes = suite.run(workspace, options, filter, &label, most)?;
        let lines = outcomes.into_iter().map(|outcome| Outcome {
            closing: format!("{label}{}", outcome.closing),
            ..outcome
        });
        Ok(lines.collect::<Vec<_>>())
    })?;
    let mut outcomes: Vec<_> = outcomes.into_iter().flatten().collect();
    outcomes.sort_by_key(|outcome| outcome.code != 0);
    for outcome in &outcomes {
        println!("{}", outcome.closing);
    }
    Ok(outcomes
        .iter()
        .map(|outcome| outcome.code)
        .max()
        .unwrap_or(0))
}

impl Suite {
    fn run(
        &self,
        workspace: &Workspace,
        options: &[&str],
        filter: &[String],
        label: &str,
        most: usize,
    ) -> Result<Vec<Outcome>> {
        let first = test_host::choose(workspace, self.arch)?;
        let mut argv = vec![self.program.display().to_string()];
        argv.extend(options.iter().map(|option| (*option).to_owned()));
        let parts = match &first {
            TestHost::Native { .. } => vec![filter.to_vec()],
            // The runner's options can't be told from their values, so they are left as they are.
            _ if filter.iter().any(|word| word.starts_with('-')) => vec![filter.to_vec()],
            TestHost::Emulated(_) if most < 2 => vec![filter.to_vec()],
            TestHost::Emulated(_) => match self.names(&first, &argv, filter)?.as_slice() {
                [] => vec![filter.to_vec()],
                names => deal(names, most),
            },
        };
        say(&format!(
            "{} system tests, on {} host(s)",
            self.arch,
            parts.len()
        ));
        let parts: Vec<_> = parts.into_iter().zip(0..).collect();
        at_once(&parts, |(part, ordinal)| {
            let argv = [&argv[..], part].concat();
            let run = || match ordinal {
                0 => self.run_on(workspace, &first, &argv, label),
                _ => {
                    let model = Model {
                        ordinal: *ordinal,
                        ..Model::fast(self.arch)
                    };
                    let host = test_host::emulated(workspace, model)?;
                    self.run_on(workspace, &host, &argv, label)
                }
            };
            // Not an error here, which would hide how the other parts ended.
            Ok(run().unwrap_or_else(|error| Outcome {
                code: 1,
                closing: format!("error: {error:#}"),
            }))
        })
    }

    /// Those of the tests that are asked for.
    fn names(&self, host: &TestHost, argv: &[String], filter: &[String]) -> Result<Vec<String>> {
        let listing = ["--list", "--format=terse"].map(str::to_owned);
        let kept = Arc::new(Mutex::new(Vec::new()));
        let argv = [argv, &listing, filter].concat();
        if host.run(&argv, &[], &mut Streams::keeping(&kept))? != 0 {
            bail!("{} does not list its tests", self.program.display());
        }
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(String::from_utf8_lossy(&kept)
            .lines()
            .filter_map(|line| line.strip_suffix(": test"))
            .map(str::to_owned)
            .collect())
    }

    fn run_on(
        &self,
        workspace: &Workspace,
        host: &TestHost,
        argv: &[String],
        label: &str,
    ) -> Result<Outcome> {
        let images = debian::container_images(workspace, self.arch)?;
        let environment = [
            ("VMBOX_TEST_PRODUCT", host.product().display().to_string()),
            ("VMBOX_TEST_IMAGES", images.display().to_string()),
        ];
        let closing = Arc::new(Mutex::new(String::new()));
        let mut streams = Streams::in_lines(label, &closing);
        let code = host.run(argv, &environment, &mut streams)?;
        drop(streams);
        let closing = closing.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(outcome(code, &closing))
    }
}

/// A runner that ended without a result has failed, whatever its exit code.
fn outcome(code: i32, closing: &str) -> Outcome {
    if closing.is_empty() {
        return Outcome {
            code: code.max(1),
            closing: format!("error: the tests ended with {code} before their result"),
        };
    }
    Outcome {
        code,
        closing: closing.to_owned(),
    }
}

/// Arguments that choose all `names` in at most `most` parts: neighbours, which often take alike long, go apart.
fn deal(names: &[String], most: usize) -> Vec<Vec<String>> {
    let count = most.min(names.len());
    let mut parts = vec![vec!["--exact".to_owned()]; count];
    for (name, part) in names.iter().zip((0..count).cycle()) {
        parts[part].push(name.clone());
    }
    parts
}

/// How many virtual hosts this machine has processors and memory for: each leaves its processor idle for a part of its time.
fn hosts_at_once() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let memory = sysinfo().map_or(0, |info| info.ram_total() >> 20);
    let fit = usize::try_from(memory / u64::from(MEMORY_MIB)).unwrap_or(1);
    (2 * cpus).min(fit).max(1)
}

/// Does one thing for each of `items` at the same time; the results are in their order.
pub fn at_once<I: Sync, T: Send>(
    items: &[I],
    work: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(move || work(item)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(panicked)?)
            .collect()
    })
}

/// The error for a thread that could not be joined.
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> anyhow::Error {
    anyhow::anyhow!("a thread of the developer tool panicked")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("t{number}")).collect()
    }

    #[test]
    fn tests_without_a_result_have_failed() {
        assert_eq!(outcome(0, "test result: ok").code, 0);
        assert_eq!(outcome(101, "test result: FAILED").code, 101);
        assert_ne!(outcome(0, "").code, 0);
    }

    #[test]
    fn every_test_is_in_one_part() {
        for (tests, most, parts) in [(7, 2, 2), (7, 1, 1), (1, 3, 1)] {
            let dealt = deal(&names(tests), most);
            assert_eq!(dealt.len(), parts);
            let mut all: Vec<_> = dealt.iter().flat_map(|part| &part[1..]).cloned().collect();
            all.sort();
            assert_eq!(all, names(tests));
            assert!(dealt.iter().all(|part| part[0] == "--exact"));
        }
    }
}
