//! A process of a container, its first or another (OCI runtime-spec config.md#process).

use std::collections::BTreeSet;

use libcontainer::oci_spec::runtime::{
    Capabilities, LinuxCapabilities, LinuxSchedulerPolicy, Process,
};

use super::{SpecError, parse};

/// Checks the process of an exec.
///
/// # Errors
/// What is wrong with it, by field.
pub fn prepare_process(json: &[u8], terminal: bool) -> Result<Process, SpecError> {
    fit(parse(json)?, terminal, "process")
}

/// Checks a process and makes it fit; `field` is what messages call it.
pub(super) fn fit(mut process: Process, terminal: bool, field: &str) -> Result<Process, SpecError> {
    check(&process).map_err(|(name, why)| SpecError::Value(format!("{field}.{name}: {why}")))?;
    process.set_terminal(Some(terminal));
    let unconfined = [None, Some(""), Some("unconfined")];
    if unconfined.contains(&process.apparmor_profile().as_deref()) {
        process.set_apparmor_profile(None);
    }
    process.set_capabilities(Some(named_capabilities(process.capabilities().as_ref())));
    Ok(process)
}

type Wrong = (&'static str, String);

fn check(process: &Process) -> Result<(), Wrong> {
    let args = process.args().as_deref().unwrap_or_default();
    let Some(program) = args.first() else {
        return Err(("args", "is missing".into()));
    };
    if program.is_empty() {
        return Err(("args[0]", "is empty".into()));
    }
    if args.iter().any(|word| word.contains('\0')) {
        return Err(("args", "can't contain NUL".into()));
    }
    if process
        .env()
        .iter()
        .flatten()
        .any(|word| word.contains('\0'))
    {
        return Err(("env", "can't contain NUL".into()));
    }
    if !process.cwd().is_absolute() {
        let why = format!("{} is not absolute", process.cwd().display());
        return Err(("cwd", why));
    }
    if process.user().umask().is_some_and(|umask| umask > 0o777) {
        return Err(("user.umask", "is above 0777".into()));
    }
    if !(-1000..=1000).contains(&process.oom_score_adj().unwrap_or(0)) {
        return Err(("oomScoreAdj", "is outside of -1000 to 1000".into()));
    }
    check_labels(process)?;
    check_rlimits(process)?;
    check_scheduling(process)
}

fn check_labels(process: &Process) -> Result<(), Wrong> {
    let asked = |label: &Option<String>| {
        label
            .as_deref()
            .is_some_and(|l| !l.is_empty() && l != "unconfined")
    };
    if asked(process.apparmor_profile()) {
        return Err((
            "apparmorProfile",
            "the guest's kernel has no AppArmor".into(),
        ));
    }
    if asked(process.selinux_label()) {
        return Err(("selinuxLabel", "the guest's kernel has no SELinux".into()));
    }
    Ok(())
}

/// config.md#posix-process: naming a limit twice is an error.
fn check_rlimits(process: &Process) -> Result<(), Wrong> {
    let mut seen = BTreeSet::new();
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ().to_string();
        if limit.soft() > limit.hard() {
            let why = format!(
                "{name}: soft, {}, is above hard, {}",
                limit.soft(),
                limit.hard()
            );
            return Err(("rlimits", why));
        }
        if !seen.insert(name.clone()) {
            return Err(("rlimits", format!("{name} is named twice")));
        }
    }
    Ok(())
}

fn check_scheduling(process: &Process) -> Result<(), Wrong> {
    if let Some(io) = process.io_priority()
        && !(0..=7).contains(&io.priority())
    {
        return Err((
            "ioPriority.priority",
            format!("{} is outside of 0 to 7", io.priority()),
        ));
    }
    let Some(scheduler) = process.scheduler() else {
        return Ok(());
    };
    use LinuxSchedulerPolicy::{SchedBatch, SchedDeadline, SchedFifo, SchedOther, SchedRr};
    let policy = scheduler.policy();
    let nice = scheduler.nice().unwrap_or(0);
    if matches!(policy, SchedOther | SchedBatch) && !(-20..=19).contains(&nice) {
        return Err(("scheduler.nice", format!("{nice} is outside of -20 to 19")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    if priority != 0 && !matches!(policy, SchedFifo | SchedRr) {
        return Err((
            "scheduler.priority",
            "is for SCHED_FIFO and SCHED_RR".into(),
        ));
    }
    let times = [
        scheduler.runtime(),
        scheduler.deadline(),
        scheduler.period(),
    ];
    if times.iter().any(|time| time.is_some_and(|t| t != 0)) && *policy != SchedDeadline {
        return Err((
            "scheduler.runtime",
            "is for SCHED_DEADLINE, as are deadline and period".into(),
        ));
    }
    Ok(())
}

/// A set that is not named is empty (config.md#linux-process); libcontainer would leave the agent's, which has them all.
pub fn named_capabilities(named: Option<&LinuxCapabilities>) -> LinuxCapabilities {
    let set = |of: fn(&LinuxCapabilities) -> &Option<Capabilities>| {
        Some(
            named
                .and_then(|named| of(named).clone())
                .unwrap_or_default(),
        )
    };
    let mut all = LinuxCapabilities::default();
    all.set_bounding(set(LinuxCapabilities::bounding));
    all.set_effective(set(LinuxCapabilities::effective));
    all.set_permitted(set(LinuxCapabilities::permitted));
    all.set_inheritable(set(LinuxCapabilities::inheritable));
    all.set_ambient(set(LinuxCapabilities::ambient));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn with(field: &str, value: Value) -> Result<Process, String> {
        let mut process = json!({ "cwd": "/", "args": ["sh"], "user": { "uid": 0, "gid": 0 } });
        process[field] = value;
        prepare_process(process.to_string().as_bytes(), false).map_err(|e| e.to_string())
    }

    #[test]
    fn a_process_without_capabilities_has_none() {
        let process = with("env", json!([])).unwrap();
        let capabilities = process.capabilities().clone().unwrap();
        let none = Some(Capabilities::new());
        assert_eq!(capabilities.bounding(), &none);
        assert_eq!(capabilities.effective(), &none);
        assert_eq!(capabilities.permitted(), &none);
    }

    #[test]
    fn what_can_not_be_is_refused_by_field() {
        let nofile = |soft: u64| json!({ "type": "RLIMIT_NOFILE", "soft": soft, "hard": 9 });
        for (field, value, named) in [
            ("args", json!([]), "process.args"),
            ("args", json!([""]), "process.args[0]"),
            ("env", json!(["A=\u{0}"]), "process.env"),
            ("cwd", json!("tmp"), "process.cwd"),
            (
                "user",
                json!({ "uid": 0, "gid": 0, "umask": 0o1000 }),
                "process.user.umask",
            ),
            ("oomScoreAdj", json!(1001), "process.oomScoreAdj"),
            ("selinuxLabel", json!("a:b:c"), "process.selinuxLabel"),
            (
                "apparmorProfile",
                json!("docker-default"),
                "process.apparmorProfile",
            ),
            (
                "rlimits",
                json!([nofile(10)]),
                "process.rlimits: RLIMIT_NOFILE",
            ),
            (
                "rlimits",
                json!([nofile(1), nofile(2)]),
                "process.rlimits: RLIMIT_NOFILE",
            ),
            (
                "ioPriority",
                json!({ "class": "IOPRIO_CLASS_BE", "priority": 8 }),
                "process.ioPriority.priority",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_OTHER", "priority": 1 }),
                "process.scheduler.priority",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_BATCH", "nice": 20 }),
                "process.scheduler.nice",
            ),
            (
                "scheduler",
                json!({ "policy": "SCHED_FIFO", "period": 20 }),
                "process.scheduler.runtime",
            ),
        ] {
            let error = with(field, value).unwrap_err();
            assert!(error.contains(named), "{named}: {error}");
        }
    }

    #[test]
    fn unconfined_is_what_every_process_of_a_guest_is() {
        let process = with("apparmorProfile", json!("unconfined")).unwrap();
        assert!(process.apparmor_profile().is_none());
    }
}
