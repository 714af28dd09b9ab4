//! PID 1 of the virtual host: mounts its root and its shares, loads modules, starts the daemon, reaps.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::unix::fs::{chroot, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::wait;
use nix::unistd::Pid;

use super::{PLAN, Plan, SharePlan};

/// Loaded by modprobe once the root is there; those that Debian builds in are simply not found.
const MODULES: [&str; 13] = [
    "kvm-amd",
    "virtio_net",
    "tun",
    "vhost_vsock",
    "vhost_net",
    "vsock_loopback",
    "fuse",
    "virtiofs",
    "loop",
    "veth",
    "bridge",
    "erofs",
    "nf_tables",
];

/// What is mounted in the new root: source, target, type, options.
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("tmpfs", "/run", "tmpfs", "mode=755"),
    ("tmpfs", "/tmp", "tmpfs", "mode=1777"),
    ("tmpfs", "/var/lib/vmbox", "tmpfs", "mode=700,size=75%"),
    ("devpts", "/dev/pts", "devpts", "mode=620,ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", ""),
    ("debugfs", "/sys/kernel/debug", "debugfs", ""),
];

/// What udev would add to devtmpfs: without them, no `/dev/stdin` and no process substitution.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Boots, and powers off when the daemon ends; on failure the error is on the console.
pub fn run() -> Result<()> {
    let outcome = boot_and_reap();
    if let Err(error) = &outcome {
        eprintln!("vmbox-host: {error:#}");
    }
    reboot(RebootMode::RB_POWER_OFF).map(|never| match never {})?;
    outcome
}

fn boot_and_reap() -> Result<()> {
    mount_at("proc", Path::new("/proc"), "proc", "", MsFlags::empty())?;
    mount_at("sysfs", Path::new("/sys"), "sysfs", "", MsFlags::empty())?;
    mount_at(
        "devtmpfs",
        Path::new("/dev"),
        "devtmpfs",
        "",
        MsFlags::empty(),
    )?;
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN).context("read the plan")?)?;
    for module in &plan.boot_modules {
        load(&Path::new("/modules").join(module))?;
    }
    mount_root()?;
    for share in &plan.shares {
        mount_share(share)?;
    }
    enter_root()?;
    for (source, target, kind, options) in MOUNTS {
        mount_at(source, Path::new(target), kind, options, MsFlags::empty())?;
    }
    for (target, link) in LINKS {
        symlink(target, link).with_context(|| format!("make {link}"))?;
    }
    set_up();
    let daemon = Command::new("/proc/self/exe")
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("TERM", "dumb")
        .env("LANG", "C.UTF-8")
        .env("VMBOX_HOST_TOKEN", &plan.token)
        .spawn()
        .context("start the daemon")?;
    let daemon = Pid::from_raw(i32::try_from(daemon.id())?);
    while wait()?.pid() != Some(daemon) {}
    anyhow::bail!("the daemon ended")
}

/// Loads one module; Debian's are compressed, and the kernel can unpack them itself.
fn load(module: &Path) -> Result<()> {
    use nix::kmod::{ModuleInitFlags, finit_module};
    const COMPRESSED: i32 = 4;
    let file = File::open(module).with_context(|| format!("open {}", module.display()))?;
    let flags = if module.extension().is_some_and(|kind| kind == "ko") {
        ModuleInitFlags::empty()
    } else {
        ModuleInitFlags::from_bits_retain(COMPRESSED as _)
    };
    match finit_module(&file, &CString::default(), flags) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("load {}", module.display())),
    }
}

/// The Debian tree, read-only, under a tmpfs that takes the writes.
fn mount_root() -> Result<()> {
    let none = MsFlags::empty();
    mount_at(
        "root",
        Path::new("/lower"),
        "9p",
        &p9("loose"),
        MsFlags::MS_RDONLY,
    )?;
    mount_at("tmpfs", Path::new("/upper"), "tmpfs", "size=75%", none)?;
    fs::create_dir("/upper/files")?;
    fs::create_dir("/upper/work")?;
    let layers = "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work";
    mount_at("root", Path::new("/root"), "overlay", layers, none)
}

fn p9(cache: &str) -> String {
    format!("trans=virtio,version=9p2000.L,msize=512000,cache={cache}")
}

fn mount_share(share: &SharePlan) -> Result<()> {
    let relative = share.path.strip_prefix("/").unwrap_or(&share.path);
    let options = p9(if share.immutable { "loose" } else { "none" });
    let flags = match share.writable {
        true => MsFlags::empty(),
        false => MsFlags::MS_RDONLY,
    };
    mount_at(
        &share.tag,
        &Path::new("/root").join(relative),
        "9p",
        &options,
        flags,
    )
}

fn enter_root() -> Result<()> {
    for folder in ["/dev", "/proc", "/sys"] {
        let target = format!("/root{folder}");
        let flags = MsFlags::MS_MOVE;
        mount(
            Some(folder),
            target.as_str(),
            None::<&str>,
            flags,
            None::<&str>,
        )?;
    }
    std::env::set_current_dir("/root")?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    std::env::set_current_dir("/")?;
    Ok(())
}

/// What may fail without ending the boot: a missing module is a matter for the test that needs it.
fn set_up() {
    let quiet = |program: &str, arguments: &[&str]| {
        let path = "/usr/sbin:/usr/bin:/sbin:/bin";
        let outcome = Command::new(program)
            .args(arguments)
            .env("PATH", path)
            .output();
        if let Err(error) = outcome {
            eprintln!("vmbox-host: {program}: {error}");
        }
    };
    for module in MODULES {
        quiet("/usr/sbin/modprobe", &["-q", module]);
    }
    quiet("/usr/sbin/ip", &["link", "set", "lo", "up"]);
    quiet(
        "/usr/sbin/ip",
        &["address", "add", "10.0.2.15/24", "dev", "eth0"],
    );
    quiet("/usr/sbin/ip", &["link", "set", "eth0", "up"]);
    quiet("/usr/bin/hostname", &["vmbox-host"]);
}

fn mount_at(source: &str, target: &Path, kind: &str, options: &str, flags: MsFlags) -> Result<()> {
    let context = || format!("mount {source} at {}", target.display());
    if !target.is_dir() {
        fs::create_dir_all(target).with_context(context)?;
    }
    mount(Some(source), target, Some(kind), flags, Some(options)).with_context(context)
}
