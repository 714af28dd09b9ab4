//! `tests/conformance.md`: which tests can't pass, and why.

/// The lines of the list, in which every failure of ours that runc doesn't share must have its own.
#[derive(Debug, Default)]
pub struct Reasons(Vec<Line>);

#[derive(Debug)]
struct Line {
    /// A test's key, or the beginning of several if `many`.
    key: String,
    many: bool,
}

impl Reasons {
    /// Reads list items that begin with a key in backquotes and go on with a reason: ``- `SUITE/TEST`: why``.
    ///
    /// A key that ends in `*` stands for all that begin so. Other lines are for people.
    pub fn read(text: &str) -> Self {
        Self(text.lines().filter_map(line).collect())
    }

    /// Whether there is a reason for a failure of the test `key`.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|line| line.covers(key))
    }

    /// The keys of those lines that no test of `failed` needs.
    pub fn idle(&self, failed: &[&str]) -> Vec<&str> {
        let idle = |line: &&Line| !failed.iter().any(|key| line.covers(key));
        let lines = self.0.iter().filter(idle);
        lines.map(|line| line.key.as_str()).collect()
    }
}

impl Line {
    fn covers(&self, key: &str) -> bool {
        if self.many {
            key.starts_with(&self.key)
        } else {
            key == self.key
        }
    }
}

fn line(text: &str) -> Option<Line> {
    // A key may hold a backquote of its own, so it ends where the reason begins.
    let (key, reason) = text.strip_prefix("- `")?.split_once("`: ")?;
    if reason.trim().is_empty() {
        return None;
    }
    let (key, many) = match key.strip_suffix('*') {
        Some(beginning) => (beginning, true),
        None => (key, false),
    };
    Some(Line {
        key: key.to_owned(),
        many,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_item_with_a_reason_counts() {
        let reasons =
            Reasons::read("# List\n- `a/b`: the guest has none\n- `a/c`:\n- `a/d`: \n`a/e`: no\n");
        assert!(reasons.has("a/b"));
        for key in ["a/c", "a/d", "a/e", "a/b c"] {
            assert!(!reasons.has(key), "{key}");
        }
    }

    #[test]
    fn star_stands_for_all_that_begin_so() {
        let reasons = Reasons::read("- `bats/checkpoint: *`: no CRIU\n");
        assert!(reasons.has("bats/checkpoint: checkpoint and restore"));
        assert!(!reasons.has("bats/exec: runc exec"));
    }

    #[test]
    fn line_that_no_failure_needs_is_idle() {
        let reasons = Reasons::read("- `a/b`: x\n- `a/c*`: y\n");
        assert_eq!(reasons.idle(&["a/cd"]), ["a/b"]);
    }
}
