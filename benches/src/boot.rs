//! From the exec of a monitor to the first line of our agent: vmbox-vmm and QEMU's smallest machine, same kernel, same
//! image.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use vmbox_config::{VmConfig, VsockConfig};
use vsock::{VMADDR_CID_ANY, VsockListener};

use crate::Bench;
use crate::peer;
use crate::sample::{Series, Side, in_turns, now};

/// The host port on which the agent reports that it is ready.
const AGENT_PORT: u32 = 1024;
const MEMORY_MIB: u32 = 128;
/// Of a host that does not say how much its time is.
const PATIENCE_S: i64 = 600;
/// A guest that does not report hangs, which guests do under emulation once in a while: so often one is tried again.
const TRIES: u32 = 3;

/// What differs between the architectures: the machine that QEMU boots quickest, and what its kernel is told beside the
/// devices. The monitor's own line has the same words.
struct Peer {
    name: &'static str,
    program: &'static str,
    machine: &'static str,
    cmdline: &'static str,
}

/// Without ACPI its firmware is qboot, the quickest, and the devices are named on the kernel's command line.
const MICROVM: Peer = Peer {
    name: "QEMU microvm",
    program: "qemu-system-x86_64",
    machine: "microvm,acpi=off,x-option-roms=off,pit=off,pic=off,isa-serial=off,rtc=off,auto-kernel-cmdline=on",
    cmdline: "quiet panic=-1 reboot=k tsc=reliable no_timer_check 8250.nr_uarts=0 rcupdate.rcu_expedited=1 random.trust_cpu=on",
};

/// There is no microvm for Arm; without firmware `virt` starts the kernel itself, and our kernel sees no PCI.
const VIRT: Peer = Peer {
    name: "QEMU virt",
    program: "qemu-system-aarch64",
    machine: "virt,gic-version=3,its=off,acpi=off",
    cmdline: "quiet panic=-1 console=ttynull 8250.nr_uarts=0 swiotlb=noforce rcupdate.rcu_expedited=1 random.trust_bootloader=on",
};

fn peer() -> &'static Peer {
    match std::env::consts::ARCH {
        "aarch64" => &VIRT,
        _ => &MICROVM,
    }
}

/// The guest's kernel in the product.
pub fn kernel() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "Image",
        _ => "vmlinux",
    }
}

/// What booting once took.
struct Boot {
    elapsed: Duration,
    /// Of all vCPUs, those that KVM serves itself included.
    exits: u32,
    /// Of the monitor's process: those of the guest's memory are among them, as each page is touched first.
    faults: u32,
}

/// One figure of one side, which has a name.
type Figure = fn(&str, &[Boot]) -> Series;

/// Prints what each side took, and ours in proportion.
pub fn compare(bench: &Bench) -> anyhow::Result<()> {
    let program = peer::program(peer().program)?;
    for firmware in fs::read_dir("/usr/share/qemu").context("QEMU's firmware")? {
        let file = firmware?.path();
        if file.is_file() {
            peer::to_memory(&file)?;
        }
    }
    let measured = in_turns(vec![
        Box::new(|| boot("vmbox-vmm", || ours(bench))) as Side<'_, _>,
        Box::new(|| boot(peer().name, || qemu(bench, &program, peer()))),
    ])?;
    let names = ["vmbox-vmm", peer().name];
    let figures: [(&str, Figure); 3] = [
        ("exec → agent ready", |name, boots| {
            Series::times(name, boots.iter().map(|boot| boot.elapsed))
        }),
        ("exits until then", |name, boots| {
            Series::counts(name, boots.iter().map(|boot| boot.exits))
        }),
        ("page faults until then", |name, boots| {
            Series::counts(name, boots.iter().map(|boot| boot.faults))
        }),
    ];
    for (what, series) in figures {
        let sides = names.iter().zip(&measured);
        let sides: Vec<_> = sides
            .map(|(name, boots)| series(&format!("{name}: {what}"), boots))
            .collect();
        for side in &sides {
            println!("{side}");
        }
        if let [ours, theirs] = sides.as_slice() {
            let ratio = ours.median() / theirs.median();
            println!("{what}: ratio {} / {} {ratio:.3}", names[0], names[1]);
        }
    }
    Ok(())
}

/// A guest that has not reported by then never will: seconds, as whoever made the host knows.
fn patience() -> anyhow::Result<TimeVal> {
    let seconds = match std::env::var("VMBOX_BENCH_PATIENCE_S") {
        Ok(seconds) => seconds.parse().context("VMBOX_BENCH_PATIENCE_S")?,
        Err(_) => PATIENCE_S,
    };
    Ok(TimeVal::new(seconds, 0))
}

/// Boots once; a guest that hangs is told, put away and tried again.
fn boot(name: &str, started: impl Fn() -> anyhow::Result<Started>) -> anyhow::Result<Boot> {
    for _ in 0..TRIES {
        match started()?.ready()? {
            Some(boot) => return Ok(boot),
            None => println!("{name}: a guest did not report, and was tried again"),
        }
    }
    anyhow::bail!("{name}: {TRIES} guests did not report")
}

/// A monitor that has been started, and where its guest will report.
struct Started {
    at: Duration,
    monitor: Child,
    listener: Listener,
}

enum Listener {
    Unix(UnixListener),
    Vsock(VsockListener),
}

impl Listener {
    fn accept(&self) -> io::Result<Box<dyn Read>> {
        Ok(match self {
            Self::Unix(listener) => Box::new(listener.accept()?.0),
            Self::Vsock(listener) => Box::new(listener.accept()?.0),
        })
    }
}

impl Started {
    /// What it took until the agent's whole first line is there, unless the guest hangs; then the monitor is put away.
    fn ready(mut self) -> anyhow::Result<Option<Boot>> {
        let boot = match self.listener.accept() {
            Ok(agent) => Some(self.greeted(agent)?),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => return Err(error.into()),
        };
        self.monitor.kill()?;
        self.monitor.wait()?;
        Ok(boot)
    }

    fn greeted(&self, agent: impl Read) -> anyhow::Result<Boot> {
        let mut line = String::new();
        BufReader::new(agent).read_line(&mut line)?;
        let elapsed = now()? - self.at;
        anyhow::ensure!(line.contains("\"agent\""), "not a greeting: {line:?}");
        Ok(Boot {
            elapsed,
            exits: exits(self.monitor.id())?,
            faults: faults(self.monitor.id())?,
        })
    }
}

fn ours(bench: &Bench) -> anyhow::Result<Started> {
    let socket = bench.work.join("vsock");
    let config = VmConfig {
        online_vcpus: None,
        extra_memory_mib: 0,
        vcpus: 1,
        memory_mib: MEMORY_MIB,
        kernel: bench.product.join(kernel()),
        initrd: Some(bench.product.join("guest.cpio")),
        cmdline: String::new(),
        shares: Vec::new(),
        disks: Vec::new(),
        nics: Vec::new(),
        vsock: Some(VsockConfig {
            guest_cid: 3,
            socket: socket.clone(),
        }),
        balloon: false,
        serial: None,
        control: None,
        event_fd: None,
        lifeline_fd: None,
    };
    let file = bench.work.join("vm.json");
    fs::write(&file, serde_json::to_string(&config)?)?;
    let agent_socket = bench.work.join(format!("vsock_{AGENT_PORT}"));
    // The round before was killed, so its sockets are still there.
    for left in [&socket, &agent_socket] {
        let _ = fs::remove_file(left);
    }
    let listener = UnixListener::bind(&agent_socket)?;
    setsockopt(&listener, ReceiveTimeout, &patience()?)?;
    Ok(Started {
        at: now()?,
        monitor: Command::new(bench.product.join("vmbox-vmm"))
            .arg("--config")
            .arg(&file)
            .spawn()?,
        listener: Listener::Unix(listener),
    })
}

fn qemu(bench: &Bench, program: &Path, peer: &Peer) -> anyhow::Result<Started> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)?;
    setsockopt(&listener, ReceiveTimeout, &patience()?)?;
    let memory = format!("{MEMORY_MIB}M");
    let at = now()?;
    let monitor = Command::new(program)
        .args(["-M", peer.machine])
        .args([
            "-enable-kvm",
            "-cpu",
            "host",
            "-smp",
            "1",
            "-m",
            &memory,
            "-nodefaults",
            "-no-user-config",
            "-nographic",
            "-no-reboot",
        ])
        .arg("-kernel")
        .arg(bench.product.join(kernel()))
        .arg("-initrd")
        .arg(bench.product.join("guest.cpio"))
        .args([
            "-append",
            peer.cmdline,
            "-device",
            "vhost-vsock-device,guest-cid=42",
            "-device",
            "virtio-rng-device",
        ])
        .stdin(Stdio::null())
        .spawn()?;
    Ok(Started {
        at,
        monitor,
        listener: Listener::Vsock(listener),
    })
}

/// What KVM has counted for the one VM that a process has made: its folder is named by the process and a descriptor.
fn exits(pid: u32) -> anyhow::Result<u32> {
    let mine = format!("{pid}-");
    for folder in fs::read_dir("/sys/kernel/debug/kvm").context("debugfs")? {
        let folder = folder?;
        if folder.file_name().to_string_lossy().starts_with(&mine) {
            let count = fs::read_to_string(folder.path().join("exits"))?;
            return Ok(count.trim().parse()?);
        }
    }
    anyhow::bail!("KVM knows no VM of process {pid}")
}

/// proc_pid_stat(5): minflt and majflt, the eighth and tenth field behind the command's name.
fn faults(pid: u32) -> anyhow::Result<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a process without a name")?;
    let fields: Vec<_> = fields.split(' ').collect();
    let field = |index: usize| -> anyhow::Result<u32> {
        Ok(fields.get(index).context("a short line")?.parse()?)
    };
    Ok(field(7)? + field(9)?)
}
