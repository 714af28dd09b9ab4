//! From the exec of a monitor to the first line of our agent: vmbox-vmm and QEMU's smallest machine, same kernel, same
//! image.

use std::fs;
use std::io::{BufRead, BufReader, Read};
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
/// A guest that has not reported by then never will.
const PATIENCE: TimeVal = TimeVal::new(600, 0);

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
        Box::new(|| ours(bench)) as Side<'_, _>,
        Box::new(|| qemu(bench, &program, peer())),
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

fn ours(bench: &Bench) -> anyhow::Result<Boot> {
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
    setsockopt(&listener, ReceiveTimeout, &PATIENCE)?;
    let start = now()?;
    let child = Command::new(bench.product.join("vmbox-vmm"))
        .arg("--config")
        .arg(&file)
        .spawn()?;
    ready(start, listener.accept()?.0, child)
}

fn qemu(bench: &Bench, program: &Path, peer: &Peer) -> anyhow::Result<Boot> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)?;
    setsockopt(&listener, ReceiveTimeout, &PATIENCE)?;
    let memory = format!("{MEMORY_MIB}M");
    let start = now()?;
    let child = Command::new(program)
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
    ready(start, listener.accept()?.0, child)
}

/// What it took until the agent's whole first line is there; then the monitor is put away.
fn ready(start: Duration, agent: impl Read, mut child: Child) -> anyhow::Result<Boot> {
    let mut line = String::new();
    BufReader::new(agent).read_line(&mut line)?;
    let elapsed = now()? - start;
    let (exits, faults) = (exits(child.id())?, faults(child.id())?);
    child.kill()?;
    child.wait()?;
    anyhow::ensure!(line.contains("\"agent\""), "not a greeting: {line:?}");
    Ok(Boot {
        elapsed,
        exits,
        faults,
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
