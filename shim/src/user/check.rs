//! `vmbox check`: can this machine run guests, and if not, why, and what to do.

use std::{
    fs,
    io::Read,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use super::{one_line, run_dir, store_dir};
use crate::vm::{Assets, Overrides};

/// A probe guest that has not ended by then never will.
const PROBE: Duration = Duration::from_secs(60);

type Finding = Result<String, String>;

/// Prints a line for each thing looked at; 0 if guests can run, 1 if not.
pub fn check() -> u8 {
    let assets = Assets::find(&Overrides::default());
    let vmm = assets.as_ref().ok().map(|assets| assets.vmm.clone());
    let files = assets
        .map(|assets| {
            format!(
                "files: {}, {}",
                assets.kernel.display(),
                assets.image.display()
            )
        })
        .map_err(|error| format!("files: {}", one_line(&error)));
    let findings = [
        root(),
        files,
        kvm(vmm.as_deref()),
        overlayfs(),
        cgroup(),
        directory("pods", &run_dir()),
        directory("images", &store_dir()),
    ];
    let mut code = 0;
    for finding in findings {
        match finding {
            Ok(text) => println!("ok  {text}"),
            Err(text) => {
                println!("NO  {text}");
                code = 1;
            }
        }
    }
    code
}

fn root() -> Finding {
    if rustix::process::geteuid().is_root() {
        Ok("user: root".into())
    } else {
        Err("user: vmbox mounts file systems and so far needs root: use sudo".into())
    }
}

fn kvm(vmm: Option<&Path>) -> Finding {
    if !Path::new("/dev/kvm").exists() {
        return Err("kvm: there is no /dev/kvm: load kvm_amd or kvm_intel, turn virtualization on in the firmware, or, \
                    in a virtual machine, nested virtualization on its host"
            .into());
    }
    let Some(vmm) = vmm else {
        return Err("kvm: not tried, because a file is missing".into());
    };
    probe(vmm)
        .map(|()| "kvm: a probe guest ran".into())
        .map_err(|reason| format!("kvm: {reason}"))
}

fn probe(vmm: &Path) -> Result<(), String> {
    let mut child = Command::new(vmm)
        .arg("--probe")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("execute {}: {error}", vmm.display()))?;
    let deadline = wait_for(&child);
    if !deadline {
        let _ = child.kill();
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !deadline {
        return Err("the probe guest does not end: this KVM can't run ordinary guests".into());
    }
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    for stream in [
        child.stdout.take().map(|s| Box::new(s) as Box<dyn Read>),
        child.stderr.take().map(|s| Box::new(s) as _),
    ]
    .into_iter()
    .flatten()
    {
        // What can't be read can't be shown.
        let _ = stream.take(4096).read_to_string(&mut said);
    }
    Err(said
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or("the probe guest failed")
        .to_owned())
}

/// `false`: it still runs at the deadline.
fn wait_for(child: &std::process::Child) -> bool {
    use rustix::{
        event::{PollFd, PollFlags, Timespec},
        process::{Pid, PidfdFlags, pidfd_open},
    };
    let Ok(pidfd) = pidfd_open(Pid::from_child(child), PidfdFlags::empty()) else {
        return true;
    };
    let timeout = Timespec {
        tv_sec: PROBE.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    !matches!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(0))
}

fn overlayfs() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let built_in = known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("overlay"));
    let loadable = || {
        Command::new("modprobe")
            .args(["-n", "-q", "overlay"])
            .status()
            .is_ok_and(|status| status.success())
    };
    if built_in || loadable() {
        Ok("overlayfs: there".into())
    } else {
        Err("overlayfs: the kernel has none: load the module `overlay`".into())
    }
}

/// Limits are the guest's to enforce, so the host's cgroups only tell the user what kind of host it is.
fn cgroup() -> Finding {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Ok("cgroup: version 2".into())
    } else {
        Ok("cgroup: not version 2, which guests don't need: they have their own".into())
    }
}

fn directory(what: &str, dir: &Path) -> Finding {
    match fs::create_dir_all(dir) {
        Ok(()) => Ok(format!("{what}: in {}", dir.display())),
        Err(error) => Err(format!("{what}: {} can't be made: {error}", dir.display())),
    }
}
