//! Reads the Test Anything Protocol as the suites print it: version 13 from one, without a version from the other.
//!
//! The one crate that reads it, tap_parser 0.1.1, takes version 14 only.

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should, or as is known not to be done yet.
    Passed,
    /// Not as it should.
    Failed,
    /// It could not be tried.
    Skipped,
}

/// A test point: a line that begins with `ok` or `not ok`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// Without number and directive.
    pub description: String,
    /// What the line and its directive say.
    pub verdict: Verdict,
}

/// The test points among the lines of `output`; all else is for people.
pub fn points(output: &str) -> Vec<Point> {
    output.lines().filter_map(point).collect()
}

/// How many points the plan, a line `1..N`, announces; 0 without one.
pub fn planned(output: &str) -> usize {
    let plan = |line: &str| line.trim_end().strip_prefix("1..")?.parse().ok();
    output.lines().find_map(plan).unwrap_or(0)
}

fn point(line: &str) -> Option<Point> {
    let line = line.trim_end();
    let (failed, rest) = match line.strip_prefix("not ok") {
        Some(rest) => (true, rest),
        None => (false, line.strip_prefix("ok")?),
    };
    if !rest.is_empty() && !rest.starts_with(' ') {
        return None;
    }
    let (text, directive) = split_directive(rest);
    let verdict = match directive {
        Some(Directive::Skip) => Verdict::Skipped,
        Some(Directive::Todo) => Verdict::Passed,
        None if failed => Verdict::Failed,
        None => Verdict::Passed,
    };
    let description = without_number(text.trim()).to_owned();
    Some(Point {
        description,
        verdict,
    })
}

enum Directive {
    Skip,
    Todo,
}

/// What is before a directive, and which it is.
fn split_directive(rest: &str) -> (&str, Option<Directive>) {
    for (at, _) in rest.match_indices('#') {
        let word = rest[at + 1..].trim_start().to_ascii_lowercase();
        if word.starts_with("skip") {
            return (&rest[..at], Some(Directive::Skip));
        }
        if word.starts_with("todo") {
            return (&rest[..at], Some(Directive::Todo));
        }
        // bats' own remark on a test that it ended.
        if word.starts_with("timeout after ") {
            return (&rest[..at], None);
        }
    }
    (rest, None)
}

fn without_number(text: &str) -> &str {
    let unnumbered = text.trim_start_matches(|c: char| c.is_ascii_digit());
    unnumbered.trim_start().trim_start_matches("- ").trim()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(line: &str) -> (String, Verdict) {
        let point = points(line).pop().unwrap();
        (point.description, point.verdict)
    }

    #[test]
    fn both_ways_of_writing_a_description_are_read() {
        assert_eq!(of("ok 1 - a b"), ("a b".into(), Verdict::Passed));
        assert_eq!(of("not ok 12 a b"), ("a b".into(), Verdict::Failed));
    }

    #[test]
    fn line_ends_of_a_terminal_are_no_part_of_it() {
        assert_eq!(
            of("ok 1 runc exec\r"),
            ("runc exec".into(), Verdict::Passed)
        );
    }

    #[test]
    fn skipped_is_neither_passed_nor_failed() {
        assert_eq!(
            of("ok 1 a # skip needs root"),
            ("a".into(), Verdict::Skipped)
        );
        assert_eq!(of("ok 2 # SKIP no uid"), (String::new(), Verdict::Skipped));
    }

    #[test]
    fn what_is_not_done_yet_does_not_fail() {
        assert_eq!(of("not ok 3 - # Todo bind").1, Verdict::Passed);
    }

    #[test]
    fn test_that_ran_out_of_time_keeps_its_name() {
        assert_eq!(
            of("not ok 1 a # timeout after 180s"),
            ("a".into(), Verdict::Failed)
        );
    }

    #[test]
    fn hash_in_a_description_is_no_directive() {
        assert_eq!(
            of("not ok 3 issue #1354"),
            ("issue #1354".into(), Verdict::Failed)
        );
    }

    #[test]
    fn lines_for_people_are_no_points() {
        let output = "TAP version 13\n1..2\n# ok\n  ok\nokay\nnot okay\n  ---\n  {}\n  ...\n";
        assert_eq!(points(output), Vec::new());
    }

    #[test]
    fn plan_is_read_wherever_it_is() {
        assert_eq!(planned("TAP version 13\n1..15\r\nok 1 a\r\n"), 15);
        assert_eq!(planned("ok 1 a\n1..1\n"), 1);
        assert_eq!(planned("ok 1 a\n"), 0);
    }

    #[test]
    fn points_keep_their_order() {
        let all = points("ok 1 a\nnoise\nnot ok 2 b\nok 3 c # skip\n");
        let names: Vec<_> = all.iter().map(|point| point.description.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }
}
