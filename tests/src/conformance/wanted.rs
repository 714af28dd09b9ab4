//! What `cargo dev test --tier conformance WORD…` asks for.

use super::runtime::Runtime;
use super::suite::{Suite, Unit};

/// Suites, runtimes and units by name; nothing named is all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    suites: Vec<Suite>,
    runtimes: Vec<Runtime>,
    names: Vec<String>,
}

impl Wanted {
    /// A word is a suite, a runtime, or a part of units' names.
    pub fn read(words: &[String]) -> Self {
        let mut wanted = Self::default();
        for word in words {
            let suite = Suite::ALL.into_iter().find(|suite| suite.name() == word);
            let runtime = Runtime::ALL.into_iter().find(|it| it.name() == word);
            match (suite, runtime) {
                (Some(suite), _) => wanted.suites.push(suite),
                (None, Some(runtime)) => wanted.runtimes.push(runtime),
                (None, None) => wanted.names.push(word.clone()),
            }
        }
        wanted
    }

    /// Whether units of this suite are wanted.
    pub fn has_suite(&self, suite: Suite) -> bool {
        self.suites.is_empty() || self.suites.contains(&suite)
    }

    /// Whether this unit is.
    pub fn has(&self, unit: &Unit) -> bool {
        let named = |name: &String| unit.name.contains(name.as_str());
        self.has_suite(unit.suite) && (self.names.is_empty() || self.names.iter().any(named))
    }

    /// In the order of the scoreboard's columns.
    pub fn runtimes(&self) -> Vec<Runtime> {
        let wanted = |it: &Runtime| self.runtimes.is_empty() || self.runtimes.contains(it);
        Runtime::ALL.into_iter().filter(wanted).collect()
    }

    /// Whether units were named: those are run again even if their outcome is known.
    pub fn names_units(&self) -> bool {
        !self.names.is_empty()
    }

    /// Whether it is everything there is.
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(words: &str) -> Wanted {
        let words: Vec<_> = words.split_whitespace().map(str::to_owned).collect();
        Wanted::read(&words)
    }

    fn unit(suite: Suite, name: &str) -> Unit {
        Unit {
            suite,
            name: name.into(),
        }
    }

    #[test]
    fn nothing_named_is_everything() {
        let all = wanted("");
        assert!(all.is_all());
        assert!(all.has(&unit(Suite::Bats, "exec")));
        assert_eq!(all.runtimes(), Runtime::ALL);
    }

    #[test]
    fn suite_and_name_narrow_each_other() {
        let kill = wanted("runtime-tools kill");
        assert!(kill.has(&unit(Suite::RuntimeTools, "kill_no_effect")));
        assert!(!kill.has(&unit(Suite::RuntimeTools, "start")));
        assert!(!kill.has(&unit(Suite::Bats, "kill")));
        assert!(!kill.is_all());
    }

    #[test]
    fn runtimes_keep_their_order() {
        assert_eq!(
            wanted("vmbox runc").runtimes(),
            [Runtime::Runc, Runtime::Vmbox]
        );
    }
}
