//! The scoreboard: what each runtime made of each test, the totals, and the failures that are ours alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::reasons::Reasons;
use super::runtime::Runtime;
use super::tap::Verdict;

/// The verdicts of each runtime, by test.
#[derive(Debug)]
pub struct Board {
    runtimes: Vec<Runtime>,
    rows: BTreeMap<String, BTreeMap<Runtime, Verdict>>,
}

/// How many tests ended in which way.
#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Board {
    /// An empty one for these runtimes.
    pub fn new(runtimes: &[Runtime]) -> Self {
        Self {
            runtimes: runtimes.to_vec(),
            rows: BTreeMap::new(),
        }
    }

    /// Enters the tests of one program or file.
    pub fn enter(&mut self, runtime: Runtime, verdicts: Vec<(String, Verdict)>) {
        for (key, verdict) in verdicts {
            self.rows.entry(key).or_default().insert(runtime, verdict);
        }
    }

    /// A test that others reached and this runtime did not (the file ended or ran out of time before) has failed.
    fn verdict(&self, row: &BTreeMap<Runtime, Verdict>, runtime: Runtime) -> Verdict {
        row.get(&runtime).copied().unwrap_or(Verdict::Failed)
    }

    fn failed(&self, runtime: Runtime) -> impl Iterator<Item = &str> {
        let rows = self.rows.iter();
        rows.filter(move |(_, row)| self.verdict(row, runtime) == Verdict::Failed)
            .map(|(key, _)| key.as_str())
    }

    /// What vmbox fails and runc passes, without a line in the list of reasons.
    pub fn unexplained(&self, reasons: &Reasons) -> Vec<&str> {
        if !self.runtimes.contains(&Runtime::Vmbox) {
            return Vec::new();
        }
        self.failed(Runtime::Vmbox)
            .filter(|key| {
                let runc = self.rows[*key].get(&Runtime::Runc);
                runc == Some(&Verdict::Passed) && !reasons.has(key)
            })
            .collect()
    }

    /// Lines of the list of reasons whose tests fail nowhere that was looked at; to be asked after a complete run only.
    pub fn idle<'a>(&self, reasons: &'a Reasons) -> Vec<&'a str> {
        let ours = self.failed(Runtime::Vmbox);
        let failed: Vec<_> = ours.chain(self.failed(Runtime::Runc)).collect();
        reasons.idle(&failed)
    }

    fn total(&self, runtime: Runtime, suite: &str) -> Total {
        let mut total = Total::default();
        let of_suite = |key: &&String| key.split('/').next() == Some(suite);
        for key in self.rows.keys().filter(of_suite) {
            match self.verdict(&self.rows[key], runtime) {
                Verdict::Passed => total.passed += 1,
                Verdict::Failed => total.failed += 1,
                Verdict::Skipped => total.skipped += 1,
            }
        }
        total
    }

    /// The whole table and the totals of each suite.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for runtime in &self.runtimes {
            let _ = write!(text, "{:7}", runtime.name());
        }
        text.push('\n');
        for (key, row) in &self.rows {
            for runtime in &self.runtimes {
                let _ = write!(text, "{:7}", word(self.verdict(row, *runtime)));
            }
            let _ = writeln!(text, "{key}");
        }
        let mut suites: Vec<_> = self
            .rows
            .keys()
            .filter_map(|key| key.split('/').next())
            .collect();
        suites.dedup();
        for suite in suites {
            for runtime in &self.runtimes {
                let Total {
                    passed,
                    failed,
                    skipped,
                } = self.total(*runtime, suite);
                let name = runtime.name();
                let _ = writeln!(
                    text,
                    "{suite}: {name:6} {passed} passed, {failed} failed, {skipped} skipped"
                );
            }
        }
        text
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "pass",
        Verdict::Failed => "FAIL",
        Verdict::Skipped => "skip",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(rows: &[(&str, Option<Verdict>, Option<Verdict>)]) -> Board {
        let mut board = Board::new(&[Runtime::Runc, Runtime::Vmbox]);
        for (key, runc, ours) in rows {
            for (runtime, verdict) in [(Runtime::Runc, runc), (Runtime::Vmbox, ours)] {
                if let Some(verdict) = verdict {
                    board.enter(runtime, vec![((*key).to_owned(), *verdict)]);
                }
            }
        }
        board
    }

    const PASS: Option<Verdict> = Some(Verdict::Passed);
    const FAIL: Option<Verdict> = Some(Verdict::Failed);
    const SKIP: Option<Verdict> = Some(Verdict::Skipped);

    #[test]
    fn only_what_runc_passes_wants_a_reason() {
        let board = board(&[
            ("s/both", FAIL, FAIL),
            ("s/ours", PASS, FAIL),
            ("s/skipped", SKIP, FAIL),
            ("s/theirs", FAIL, PASS),
        ]);
        assert_eq!(board.unexplained(&Reasons::default()), ["s/ours"]);
    }

    #[test]
    fn reason_excuses_the_failure_it_names() {
        let board = board(&[("s/a", PASS, FAIL), ("s/b", PASS, FAIL)]);
        let reasons = Reasons::read("- `s/a`: it asks for the host's namespace\n");
        assert_eq!(board.unexplained(&reasons), ["s/b"]);
    }

    #[test]
    fn test_that_we_never_reached_has_failed() {
        let board = board(&[("s/late", PASS, None)]);
        assert_eq!(board.unexplained(&Reasons::default()), ["s/late"]);
        assert_eq!(board.total(Runtime::Vmbox, "s").failed, 1);
    }

    #[test]
    fn run_without_vmbox_blames_nobody() {
        let mut board = Board::new(&[Runtime::Runc]);
        board.enter(Runtime::Runc, vec![("s/a".into(), Verdict::Passed)]);
        assert_eq!(board.unexplained(&Reasons::default()), Vec::<&str>::new());
    }

    #[test]
    fn totals_are_per_suite() {
        let board = board(&[
            ("a/x", PASS, FAIL),
            ("a/y", PASS, SKIP),
            ("b/x", FAIL, PASS),
        ]);
        let expected = Total {
            passed: 2,
            failed: 0,
            skipped: 0,
        };
        assert_eq!(board.total(Runtime::Runc, "a"), expected);
        let text = board.render();
        assert!(
            text.contains("a: vmbox  0 passed, 1 failed, 1 skipped"),
            "{text}"
        );
        assert!(text.contains("FAIL   pass   b/x"), "{text}");
    }

    #[test]
    fn line_for_a_test_that_passes_everywhere_is_idle() {
        let board = board(&[("s/a", PASS, PASS), ("s/b", FAIL, PASS)]);
        let reasons = Reasons::read("- `s/a`: x\n- `s/b`: runc's own\n");
        assert_eq!(board.idle(&reasons), ["s/a"]);
    }
}
