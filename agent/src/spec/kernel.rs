//! Fields that depend on what this guest's kernel has: devices, seccomp, personality, and what no guest has.

use std::path::Path;

use libcontainer::oci_spec::runtime::{
    Linux, LinuxDevice, LinuxDeviceType, LinuxSeccomp, LinuxSeccompAction,
};

use super::SpecError;

/// Checks and fits what of `linux` is about the kernel. With `other_users` the container has a user namespace.
///
/// # Errors
/// The field that can't be applied.
pub fn fit(linux: &mut Linux, other_users: bool) -> Result<(), SpecError> {
    let refuse = |why: &str| Err(SpecError::Value(why.into()));
    if linux.intel_rdt().is_some() {
        return refuse(
            "linux.intelRdt: the caches of the host's CPUs can't be divided from a guest",
        );
    }
    if linux
        .net_devices()
        .as_ref()
        .is_some_and(|devices| !devices.is_empty())
    {
        return refuse("linux.netDevices: a device of the host can't be moved into a guest");
    }
    if linux
        .mount_label()
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        return refuse("linux.mountLabel: the guest's kernel has no SELinux");
    }
    let flags = linux
        .personality()
        .as_ref()
        .and_then(|p| p.flags().as_ref());
    if flags.is_some_and(|flags| !flags.is_empty()) {
        return refuse("linux.personality.flags: there are none");
    }
    fit_propagation(linux)?;
    if let Some(seccomp) = linux.seccomp_mut() {
        check_seccomp(seccomp)?;
        // Nothing is sent there.
        seccomp.set_listener_path(None).set_listener_metadata(None);
    }
    let known = Known::of_this_guest();
    for (number, device) in linux.devices().iter().flatten().enumerate() {
        let here = !other_users || node_matches(device);
        known.check(device, here).map_err(|why| {
            let path = device.path().display();
            SpecError::Value(format!("linux.devices[{number}] ({path}): {why}"))
        })?;
    }
    Ok(())
}

/// libcontainer has no recursive words for what it always does recursively.
fn fit_propagation(linux: &mut Linux) -> Result<(), SpecError> {
    let word = match linux.rootfs_propagation().as_deref() {
        None | Some("") => None,
        Some("shared" | "rshared") => Some("shared"),
        Some("private" | "rprivate") => Some("private"),
        Some("slave" | "rslave") => Some("slave"),
        Some("unbindable" | "runbindable") => Some("unbindable"),
        Some(other) => {
            return Err(SpecError::Value(format!(
                "linux.rootfsPropagation: {other:?} is none"
            )));
        }
    };
    linux.set_rootfs_propagation(word.map(Into::into));
    Ok(())
}

fn check_seccomp(seccomp: &LinuxSeccomp) -> Result<(), SpecError> {
    let error = |why: String| Err(SpecError::Value(format!("linux.seccomp.{why}")));
    let notify = LinuxSeccompAction::ScmpActNotify;
    let no_notify = "SCMP_ACT_NOTIFY is not supported: its listener would be a program of the host";
    if seccomp.default_action() == notify {
        return error(format!("defaultAction: {no_notify}"));
    }
    let takes_errno = |action| {
        matches!(
            action,
            LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace
        )
    };
    if seccomp.default_errno_ret().is_some() && !takes_errno(seccomp.default_action()) {
        return error("defaultErrnoRet: is for SCMP_ACT_ERRNO and SCMP_ACT_TRACE".into());
    }
    for (number, call) in seccomp.syscalls().iter().flatten().enumerate() {
        if call.action() == notify {
            return error(format!("syscalls[{number}].action: {no_notify}"));
        }
        if call.errno_ret().is_some() && !takes_errno(call.action()) {
            return error(format!(
                "syscalls[{number}].errnoRet: is for SCMP_ACT_ERRNO and SCMP_ACT_TRACE"
            ));
        }
        if call.names().is_empty() {
            return error(format!("syscalls[{number}].names: is empty"));
        }
        if let Some(arg) = call.args().iter().flatten().find(|arg| arg.index() > 5) {
            return error(format!(
                "syscalls[{number}].args: index {} is above 5",
                arg.index()
            ));
        }
    }
    Ok(())
}

/// Drivers of this guest's kernel.
struct Known {
    /// /proc/devices.
    devices: String,
    /// /proc/misc: minors of the character major 10.
    misc: String,
}

impl Known {
    fn of_this_guest() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            devices: read("/proc/devices"),
            misc: read("/proc/misc"),
        }
    }

    /// A node for a device that the guest does not have could be made, and would fail only when it is opened.
    fn check(&self, device: &LinuxDevice, node_is_here: bool) -> Result<(), String> {
        if !device.path().starts_with("/dev") {
            return Err("is not below /dev".into());
        }
        let (heading, letter) = match device.typ() {
            LinuxDeviceType::P => return Ok(()),
            LinuxDeviceType::C | LinuxDeviceType::U => ("Character devices:", 'c'),
            LinuxDeviceType::B => ("Block devices:", 'b'),
            LinuxDeviceType::A => return Err("type a is no device".into()),
        };
        let (major, minor) = (device.major(), device.minor());
        let section = self
            .devices
            .split("\n\n")
            .find_map(|part| part.trim().strip_prefix(heading));
        let has = |table: &str, number: i64| {
            let number = number.to_string();
            table
                .lines()
                .any(|line| line.split_whitespace().next() == Some(&number))
        };
        let known = has(section.unwrap_or_default(), major)
            && (letter != 'c' || major != 10 || has(&self.misc, minor));
        if !known {
            return Err(format!(
                "{letter} {major}:{minor} is no device of the guest"
            ));
        }
        if !node_is_here {
            return Err(format!(
                "{letter} {major}:{minor} is not at this path in the guest, and can't be made in a user namespace"
            ));
        }
        Ok(())
    }
}

/// In a user namespace no node can be made; the guest's own is bound.
fn node_matches(device: &LinuxDevice) -> bool {
    use std::os::unix::fs::MetadataExt;
    let (Ok(major), Ok(minor)) = (u32::try_from(device.major()), u32::try_from(device.minor()))
    else {
        return false;
    };
    std::fs::symlink_metadata(Path::new(device.path()))
        .is_ok_and(|found| found.rdev() == nix::sys::stat::makedev(major.into(), minor.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn fitted(linux: Value) -> Result<Value, String> {
        let mut linux: Linux = serde_json::from_value(linux).unwrap();
        fit(&mut linux, false).map_err(|e| e.to_string())?;
        Ok(serde_json::to_value(linux).unwrap())
    }

    #[track_caller]
    fn refused(linux: Value, field: &str) {
        let error = fitted(linux).unwrap_err();
        assert!(error.contains(field), "{error}");
    }

    #[test]
    fn seccomp_that_can_not_be_had_is_refused_by_field() {
        let calls = |call: Value| json!({ "seccomp": { "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call] } });
        refused(
            calls(json!({ "names": ["x"], "action": "SCMP_ACT_NOTIFY" })),
            "linux.seccomp.syscalls[0].action",
        );
        refused(
            calls(json!({ "names": ["x"], "action": "SCMP_ACT_KILL", "errnoRet": 1 })),
            "syscalls[0].errnoRet",
        );
        refused(
            calls(json!({ "names": [], "action": "SCMP_ACT_KILL" })),
            "syscalls[0].names",
        );
        refused(
            json!({ "seccomp": { "defaultAction": "SCMP_ACT_NOTIFY" } }),
            "seccomp.defaultAction",
        );
    }

    #[test]
    fn a_listener_that_no_call_is_sent_to_is_left_out() {
        let asked = json!({ "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x", "listenerMetadata": "y" });
        let fitted = fitted(json!({ "seccomp": asked })).unwrap();
        assert_eq!(
            fitted["seccomp"],
            json!({ "defaultAction": "SCMP_ACT_ALLOW" })
        );
    }

    #[test]
    fn what_no_guest_has_is_refused_by_field() {
        refused(json!({ "intelRdt": {} }), "linux.intelRdt");
        refused(json!({ "netDevices": { "eth0": {} } }), "linux.netDevices");
        refused(json!({ "mountLabel": "x" }), "linux.mountLabel");
        refused(
            json!({ "personality": { "domain": "LINUX", "flags": ["X"] } }),
            "linux.personality.flags",
        );
        refused(
            json!({ "rootfsPropagation": "sideways" }),
            "linux.rootfsPropagation",
        );
        assert_eq!(
            fitted(json!({ "rootfsPropagation": "rslave" })).unwrap()["rootfsPropagation"],
            "slave"
        );
    }

    #[test]
    fn only_devices_of_the_guest_can_be_had() {
        let known = Known {
            devices: "Character devices:\n  1 mem\n 10 misc\n\nBlock devices:\n254 virtblk\n"
                .into(),
            misc: "229 fuse\n200 tun\n".into(),
        };
        let check = |typ: &str, major: i64, minor: i64| {
            let device = json!({ "path": "/dev/x", "type": typ, "major": major, "minor": minor });
            known.check(&serde_json::from_value(device).unwrap(), true)
        };
        assert!(
            check("c", 1, 3).is_ok() && check("c", 10, 229).is_ok() && check("b", 254, 16).is_ok()
        );
        assert!(check("p", 0, 0).is_ok());
        for (typ, major, minor) in [("c", 226, 0), ("c", 10, 232), ("b", 8, 0), ("b", 1, 0)] {
            assert!(
                check(typ, major, minor)
                    .unwrap_err()
                    .contains(&format!("{major}:{minor}"))
            );
        }
    }
}
