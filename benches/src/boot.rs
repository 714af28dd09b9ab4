//! From the exec of a monitor to the first line of our agent: vmbox-vmm and QEMU's smallest machine, same kernel, same
//! image.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use vmbox_config::{VmConfig, VsockConfig};
use vsock::{VMADDR_CID_ANY, VsockListener};

use crate::Bench;
use crate::sample::{Series, in_turns, now};

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

/// The other monitor's name.
pub fn peer_name() -> &'static str {
    peer().name
}

/// Both series, ours first.
pub fn compare(bench: &Bench) -> anyhow::Result<(Series, Series)> {
    let ours = (
        Series::new("vmbox-vmm: exec → agent ready"),
        Box::new(|| ours(bench)) as Box<dyn FnMut() -> _>,
    );
    let qemu = (
        Series::new(&format!("{}: exec → agent ready", peer_name())),
        Box::new(|| qemu(bench, peer())) as Box<dyn FnMut() -> _>,
    );
    let mut series = in_turns(vec![ours, qemu])?.into_iter();
    match (series.next(), series.next()) {
        (Some(ours), Some(qemu)) => Ok((ours, qemu)),
        _ => unreachable!("two sides went in"),
    }
}

fn ours(bench: &Bench) -> anyhow::Result<Duration> {
    let socket = bench.work.join("vsock");
    let config = VmConfig {
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

fn qemu(bench: &Bench, peer: &Peer) -> anyhow::Result<Duration> {
    let listener = VsockListener::bind_with_cid_port(VMADDR_CID_ANY, AGENT_PORT)?;
    setsockopt(&listener, ReceiveTimeout, &PATIENCE)?;
    let memory = format!("{MEMORY_MIB}M");
    let start = now()?;
    let child = Command::new(peer.program)
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

/// The time until the agent's whole first line is there; then the monitor is put away.
fn ready(start: Duration, agent: impl Read, mut child: Child) -> anyhow::Result<Duration> {
    let mut line = String::new();
    BufReader::new(agent).read_line(&mut line)?;
    let elapsed = now()? - start;
    child.kill()?;
    child.wait()?;
    anyhow::ensure!(line.contains("\"agent\""), "not a greeting: {line:?}");
    Ok(elapsed)
}
