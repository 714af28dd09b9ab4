//! The emulated machine: QEMU's command line, and waiting until the host is ready or dead.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::wire::PORT;
use super::{Model, board};
use crate::hostd::{READY, SharePlan};

/// Longer than the slowest boot seen on a busy machine in counting mode, by a factor of three.
const PATIENCE: Duration = Duration::from_secs(900);

/// What a host has; the emulator takes it as the host touches it. Fifty pods at once have needed three quarters of it.
pub const MEMORY_MIB: u32 = 5632;

/// What is to be emulated.
pub struct Machine<'a> {
    pub model: Model,
    /// Holds `initramfs.cpio`; the console's log and socket go there.
    pub dir: &'a Path,
    /// Holds `rootfs` and `vmlinuz`.
    pub image: &'a Path,
    pub shares: &'a [SharePlan],
    pub token: &'a str,
}

/// A machine that has been switched on.
pub struct Booting {
    child: Child,
    dir: PathBuf,
    pub pid: i32,
    /// Where the daemon will be reached.
    pub port: u16,
}

/// How a boot ended.
pub enum Boot {
    /// The daemon listens.
    Ready,
    /// QEMU ended; the last telling line of its console.
    Died(String),
}

impl Booting {
    /// Reads the console until the daemon speaks; unless it does, QEMU is ended.
    pub fn wait(mut self) -> Result<Boot> {
        let outcome = watch(&mut self.child, &self.dir);
        if !matches!(outcome, Ok(Boot::Ready)) {
            let _ = self.child.kill();
            self.child.wait()?;
        }
        outcome
    }
}

/// How the names of all hosts begin on QEMU's command line.
pub const MARKER: &str = "vmbox-host-";

/// The name by which QEMU's command line tells one host from another, without giving the token away.
pub fn marker(token: &str) -> String {
    format!("{MARKER}{}", token.get(..12).unwrap_or(token))
}

impl Machine<'_> {
    /// Starts QEMU in the background.
    pub fn start(&self) -> Result<Booting> {
        let port = free_port()?;
        let _ = fs::remove_file(self.dir.join("console"));
        let log = File::create(self.dir.join("qemu.log"))?;
        let child = self
            .command(port)
            .current_dir(self.dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", board::program(self.model.arch).0))?;
        let pid = i32::try_from(child.id())?;
        let dir = self.dir.to_owned();
        Ok(Booting {
            child,
            dir,
            pid,
            port,
        })
    }

    fn command(&self, port: u16) -> Command {
        let mut qemu = Command::new(board::program(self.model.arch).0);
        qemu.args(["-name", &marker(self.token)]);
        qemu.args(board::options(self.model));
        qemu.args(["-m", &MEMORY_MIB.to_string()]);
        qemu.args([
            "-display",
            "none",
            "-monitor",
            "none",
            "-no-reboot",
            "-nodefaults",
        ]);
        qemu.args([
            "-chardev",
            "socket,id=console,path=console,server=on,wait=off,logfile=console.log",
        ]);
        qemu.args(["-serial", "chardev:console", "-device", "virtio-rng-pci"]);
        let forward =
            format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{PORT}");
        qemu.args([
            "-netdev",
            &forward,
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ]);
        share(&mut qemu, "root", &self.image.join("rootfs"), false);
        for plan in self.shares {
            share(&mut qemu, &plan.tag, &plan.path, plan.writable);
        }
        qemu.arg("-kernel")
            .arg(self.image.join("vmlinuz"))
            .args(["-initrd", "initramfs.cpio"]);
        qemu.args(["-append", &board::command_line(self.model)]);
        qemu
    }
}

fn share(qemu: &mut Command, tag: &str, path: &Path, writable: bool) {
    let read_only = if writable { "off" } else { "on" };
    let path = path.display().to_string().replace(',', ",,");
    qemu.arg("-fsdev").arg(format!(
        "local,id={tag},path={path},security_model=none,readonly={read_only},multidevs=remap"
    ));
    qemu.arg("-device")
        .arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
}

/// A port nobody listens on now. Another may take it before QEMU does, which then says so and ends.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port())
}

/// Reads the console to the daemon's line, or to the end.
fn watch(child: &mut Child, dir: &Path) -> Result<Boot> {
    let deadline = Instant::now() + PATIENCE;
    let Some(console) = console(child, dir, deadline)? else {
        let log = fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
        bail!("QEMU ended: {}", log.trim());
    };
    let mut last = String::from("no output");
    let mut lines = BufReader::new(console);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!(
                "the virtual host did not boot within {} s",
                PATIENCE.as_secs()
            );
        }
        lines.get_ref().set_read_timeout(Some(left))?;
        let mut line = Vec::new();
        if lines
            .read_until(b'\n', &mut line)
            .context("read the console")?
            == 0
        {
            return Ok(Boot::Died(last));
        }
        let line = String::from_utf8_lossy(&line).trim().to_owned();
        if line.contains(READY) {
            return Ok(Boot::Ready);
        }
        if line.contains("Kernel panic") {
            return Ok(Boot::Died(line));
        }
        let telling = ["invalid opcode", "Oops", "BUG:", "vmbox-host:"];
        if telling.iter().any(|word| line.contains(word)) {
            last = line;
        }
    }
}

/// Connects to the console as soon as QEMU listens; `None` if it ended before.
fn console(child: &mut Child, dir: &Path, deadline: Instant) -> Result<Option<UnixStream>> {
    // By way of the folder's descriptor, because a socket's path may have 107 bytes and a checkout's more.
    let folder = File::open(dir)?;
    let path = format!("/proc/self/fd/{}/console", folder.as_raw_fd());
    while Instant::now() < deadline {
        if let Ok(stream) = UnixStream::connect(&path) {
            return Ok(Some(stream));
        }
        if child.try_wait()?.is_some() {
            return Ok(None);
        }
        // QEMU has no way to say that it listens.
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("QEMU does not listen on its console")
}
