//! systemd's units: one for each container, made for as long as it is there, whose cgroup its processes on the host are in
//! (runc's docs/systemd.md; systemd.scope(5), systemd.slice(5)).

mod bus;
mod message;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zbus::Variant;

use bus::Bus;
pub use bus::SystemdError;

use super::error::OciError;

const SLICE: &str = ".slice";
const SCOPE: &str = ".scope";
/// Where a scope is unless `cgroupsPath` says it.
const DEFAULT_SLICE: &str = "system.slice";
/// systemd.unit(5).
const LONGEST_NAME: usize = 255;
/// What systemd says of a unit that is gone.
const NO_SUCH_UNIT: &str = "org.freedesktop.systemd1.NoSuchUnit";

/// Why a `cgroupsPath` names no unit; the first two in runc's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It has another form.
    #[error(
        "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {0:?} instead"
    )]
    Form(String),
    /// A slice's name leads to no directory.
    #[error("invalid slice name: {0}")]
    Slice(String),
    /// systemd has no such names.
    #[error("invalid unit name: {0}")]
    Name(String),
}

/// A transient unit: a scope, or a slice if the container's name ends in that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unit {
    /// Of a scope, the slice that it is in.
    slice: String,
    name: String,
}

impl Unit {
    /// The unit that `cgroupsPath` names, `slice:prefix:name`; without it, that of a container's id.
    ///
    /// # Errors
    /// It has another form, or systemd can't have such a unit.
    pub fn of(named: Option<&str>, id: &str) -> Result<Self, UnitError> {
        let parts: Vec<&str> =
            named.map_or(vec!["", "vmbox", id], |named| named.split(':').collect());
        let [slice, prefix, name] = parts[..] else {
            return Err(UnitError::Form(named.unwrap_or_default().to_owned()));
        };
        let slice = match slice {
            "" => DEFAULT_SLICE,
            slice => slice,
        };
        expand(slice)?;
        let name = match name.ends_with(SLICE) {
            true => name.to_owned(),
            false => format!("{prefix}-{name}{SCOPE}"),
        };
        let unit = Self {
            slice: slice.to_owned(),
            name,
        };
        match unit.is_slice() {
            true => drop(expand(&unit.name)?),
            false if is_name(&unit.name) => {}
            false => return Err(UnitError::Name(unit.name)),
        }
        Ok(unit)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn is_slice(&self) -> bool {
        self.name.ends_with(SLICE)
    }

    /// Its cgroup, below the root of all.
    pub fn cgroup(&self) -> PathBuf {
        let in_slice = |slice: &str| expand(slice).unwrap_or_default();
        match self.is_slice() {
            true => in_slice(&self.name),
            false => in_slice(&self.slice).join(&self.name),
        }
    }

    /// Has systemd make it, with the process `pid` in it if it is a scope: slices have none of their own.
    ///
    /// # Errors
    /// systemd can't be reached, or refuses: there may be such a unit already.
    pub fn start(&self, id: &str, pid: u32) -> Result<(), OciError> {
        type Properties<'a> = Vec<(&'a str, Variant<'a>)>;
        let others: Vec<(&str, Properties<'_>)> = Vec::new();
        let unit = (&*self.name, "replace", self.properties(id, pid), others);
        let started = Bus::open().and_then(|mut bus| bus.job("StartTransientUnit", &unit));
        started.map_err(|source| self.failed("start", source))
    }

    /// What runc asks for, and that systemd forgets it even if it fails: nobody need reset it then.
    fn properties(&self, id: &str, pid: u32) -> Vec<(&'static str, Variant<'_>)> {
        let mut properties = vec![
            ("Description", Variant::new(format!("vmbox container {id}"))),
            ("CollectMode", Variant::new("inactive-or-failed")),
            ("DefaultDependencies", Variant::new(false)),
            ("CPUAccounting", Variant::new(true)),
            ("IOAccounting", Variant::new(true)),
            ("MemoryAccounting", Variant::new(true)),
            ("TasksAccounting", Variant::new(true)),
        ];
        let own = match self.is_slice() {
            true => vec![("Wants", Variant::new(vec![&*self.slice]))],
            false => vec![
                ("Slice", Variant::new(&*self.slice)),
                // What is below it is not systemd's, and we may move processes there.
                ("Delegate", Variant::new(true)),
                ("PIDs", Variant::new(vec![pid])),
            ],
        };
        properties.extend(own);
        properties
    }

    /// Has systemd stop it, which removes its cgroup and ends what is left in it; that it is gone is no failure.
    ///
    /// # Errors
    /// systemd can't be reached, or does not manage to.
    pub fn stop(&self) -> Result<(), OciError> {
        let unit = (&*self.name, "replace");
        let stopped = Bus::open().and_then(|mut bus| bus.job("StopUnit", &unit));
        match stopped {
            Err(SystemdError::Refused { name, .. }) if name == NO_SUCH_UNIT => Ok(()),
            stopped => stopped.map_err(|source| self.failed("stop", source)),
        }
    }

    fn failed(&self, what: &'static str, source: SystemdError) -> OciError {
        OciError::Unit {
            what,
            unit: self.name.clone(),
            source,
        }
    }
}

/// systemd.unit(5): digits, letters, and a few more. None of them leads out of a directory together with a suffix.
fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    name.len() <= LONGEST_NAME && name.bytes().all(is_allowed)
}

/// The cgroup of a slice: `a-b.slice` is in `a.slice`, `-.slice` is the root of all.
fn expand(slice: &str) -> Result<PathBuf, UnitError> {
    let invalid = || UnitError::Slice(slice.to_owned());
    let stem = slice.strip_suffix(SLICE).filter(|_| is_name(slice));
    let stem = stem.ok_or_else(invalid)?;
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    if stem.split('-').any(str::is_empty) {
        return Err(invalid());
    }
    let ends = stem.match_indices('-').map(|(end, _)| end);
    let slices = ends
        .chain([stem.len()])
        .map(|end| format!("{}{SLICE}", &stem[..end]));
    Ok(slices.collect())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn cgroup(named: &str) -> PathBuf {
        Unit::of(Some(named), "web").unwrap().cgroup()
    }

    #[test]
    fn a_scope_is_named_and_found_as_runc_does() {
        let below = "a.slice/a-b.slice/a-b-c.slice/libpod-42.scope";
        assert_eq!(cgroup("a-b-c.slice:libpod:42"), Path::new(below));
        assert_eq!(
            cgroup(":docker:42"),
            Path::new("system.slice/docker-42.scope")
        );
        assert_eq!(cgroup("-.slice:x:y"), Path::new("x-y.scope"));
        let own = Unit::of(None, "web").unwrap().cgroup();
        assert_eq!(own, Path::new("system.slice/vmbox-web.scope"));
    }

    #[test]
    fn a_name_that_ends_in_slice_is_a_slice_where_its_name_says() {
        let unit = Unit::of(Some("a.slice:ignored:b-c.slice"), "web").unwrap();
        assert_eq!(unit.name(), "b-c.slice");
        assert_eq!(unit.cgroup(), Path::new("b.slice/b-c.slice"));
        let names = |unit: &Unit| -> Vec<_> {
            let properties = unit.properties("web", 1);
            properties.into_iter().map(|(name, _)| name).collect()
        };
        assert!(names(&unit).contains(&"Wants"));
        assert!(!names(&unit).contains(&"PIDs"));
        let scope = Unit::of(None, "web").unwrap();
        assert!(names(&scope).contains(&"PIDs"));
    }

    #[test]
    fn a_plain_path_is_refused_in_runcs_words() {
        let refused = Unit::of(Some("/a/b"), "web").unwrap_err();
        let expected = "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/a/b\" instead";
        assert_eq!(refused.to_string(), expected);
        assert!(matches!(
            Unit::of(Some("a.slice:b:c:d"), "web"),
            Err(UnitError::Form(_))
        ));
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for slice in [
            "a",
            ".slice",
            "-a.slice",
            "a--b.slice",
            "a/b.slice",
            "../x.slice",
            "a-.slice",
            "-",
        ] {
            let refused = Unit::of(Some(&format!("{slice}:b:c")), "web");
            assert_eq!(refused, Err(UnitError::Slice(slice.to_owned())));
        }
        for name in ["../x", "a b", "é", &"a".repeat(255)] {
            let refused = Unit::of(Some(&format!("a.slice:b:{name}")), "web");
            assert!(matches!(refused, Err(UnitError::Name(_))), "{name}");
        }
        assert!(Unit::of(Some("a.slice:b:../x.slice"), "web").is_err());
    }

    #[test]
    fn a_unit_survives_the_disk() {
        let unit = Unit::of(None, "web").unwrap();
        let text = serde_json::to_string(&unit).unwrap();
        assert_eq!(serde_json::from_str::<Unit>(&text).unwrap(), unit);
    }
}
