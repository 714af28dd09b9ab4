//! `vmbox-vmm` by itself: sizes, control socket, exit statuses.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use vmbox_config::{Control, ExitReason, Reply, ShareConfig, VmConfig};
use vmbox_tests::arch::Arch;

use crate::kit::{Corner, PATIENCE, eventually, product};

/// A guest without an agent to talk to: it boots, finds no host, and ends; enough to see the kernel run.
fn config(corner: &Corner, vcpus: u8, memory_mib: u32) -> VmConfig {
    VmConfig {
        vcpus,
        online_vcpus: None,
        extra_memory_mib: 0,
        memory_mib,
        kernel: product().join(Arch::native().kernel()),
        initrd: Some(product().join("guest.cpio")),
        cmdline: String::new(),
        shares: Vec::new(),
        disks: Vec::new(),
        nics: Vec::new(),
        vsock: None,
        balloon: true,
        serial: Some(corner.path("serial.log")),
        control: Some(corner.path("control.sock")),
        event_fd: None,
        lifeline_fd: None,
    }
}

/// A monitor that does not outlive its test.
struct Monitor(Option<Child>);

impl Monitor {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().unwrap()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn spawn(corner: &Corner, config: &VmConfig) -> Monitor {
    let file = corner.path("vm.json");
    fs::write(&file, serde_json::to_string(config).unwrap()).unwrap();
    let mut command = Command::new(product().join("vmbox-vmm"));
    Monitor(Some(
        command
            .arg("--config")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    ))
}

#[track_caller]
fn ends(mut monitor: Monitor, reason: ExitReason, words: &[&str]) {
    let out = monitor.0.take().unwrap().wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(
        out.status.code(),
        Some(i32::from(reason.status())),
        "{stderr}"
    );
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
}

fn serial(corner: &Corner) -> String {
    fs::read_to_string(corner.path("serial.log")).unwrap_or_default()
}

/// Boots with `vcpus` and `memory_mib`, and asserts what the kernel says of them.
fn boots(name: &'static str, vcpus: u8, memory_mib: u32) {
    let corner = Corner::new(name);
    let config = VmConfig {
        cmdline: "loglevel=7 ignore_loglevel".into(),
        ..config(&corner, vcpus, memory_mib)
    };
    let mut monitor = spawn(&corner, &config);
    let up = || serial(&corner).contains("Run /init as init process");
    assert!(
        eventually(PATIENCE, || up()
            || monitor.child().try_wait().unwrap().is_some())
            && up(),
        "{}",
        serial(&corner)
    );
    let log = serial(&corner);
    assert!(
        log.contains(&format!("smp: Brought up 1 node, {vcpus} CPU")),
        "{log}"
    );
    let kib = log
        .split("Memory: ")
        .nth(1)
        .and_then(|rest| rest.split(['/', ' ']).nth(1))
        .unwrap()
        .trim_end_matches(|c: char| !c.is_ascii_digit());
    let total_mib = kib.parse::<u64>().unwrap() >> 10;
    assert!(
        total_mib + 4 >= u64::from(memory_mib),
        "{total_mib} of {memory_mib} MiB"
    );
}

#[test]
fn smallest_guest_boots() {
    boots("vm-small", 1, 32);
}

#[test]
fn four_cpus_boot() {
    boots("vm-4", 4, 128);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn thirty_two_cpus_boot() {
    boots("vm-32", 32, 256);
}

#[test]
fn memory_above_the_gap_is_used() {
    boots("vm-gap", 1, 4500);
}

#[test]
#[ignore = "Linux counts its pages for long under emulation: `cargo dev test --tier long`"]
fn largest_guest_boots() {
    boots("vm-64g", 1, 65536);
}

#[test]
fn sizes_out_of_bounds_are_bad_configuration() {
    let corner = Corner::new("vm-bounds");
    ends(
        spawn(&corner, &config(&corner, 0, 128)),
        ExitReason::BadConfig,
        &["32"],
    );
    ends(
        spawn(&corner, &config(&corner, 33, 128)),
        ExitReason::BadConfig,
        &["32"],
    );
    ends(
        spawn(&corner, &config(&corner, 1, 1)),
        ExitReason::BadConfig,
        &["32"],
    );
    ends(
        spawn(&corner, &config(&corner, 1, 65537)),
        ExitReason::BadConfig,
        &["65536"],
    );
}

/// How much that is, KVM says: on aarch64 it is the IPA size. No processor has more than 52 bits.
#[test]
fn more_than_a_guest_can_address_is_refused() {
    let corner = Corner::new("vm-ipa");
    let config = VmConfig {
        shares: vec![ShareConfig {
            dax_window_mib: u32::MAX - 1,
            ..serde_json::from_str(r#"{"tag":"root","path":"/"}"#).unwrap()
        }],
        ..config(&corner, 1, 128)
    };
    ends(
        spawn(&corner, &config),
        ExitReason::BadConfig,
        &["DAX windows of 4294967294 MiB", "bits; ask for smaller"],
    );
}

#[test]
fn text_is_not_a_kernel() {
    let corner = Corner::new("vm-text");
    fs::write(corner.path("text"), "hello\n").unwrap();
    let config = VmConfig {
        kernel: corner.path("text"),
        ..config(&corner, 1, 128)
    };
    ends(
        spawn(&corner, &config),
        ExitReason::BadKernel,
        &["text", Arch::native().kernel()],
    );
}

#[test]
fn half_a_kernel_is_refused() {
    let corner = Corner::new("vm-half");
    let mut kernel = fs::read(product().join(Arch::native().kernel())).unwrap();
    if Arch::native() == Arch::Aarch64 {
        tell_length(&mut kernel);
    }
    fs::write(corner.path("half"), &kernel[..kernel.len() / 2]).unwrap();
    let config = VmConfig {
        kernel: corner.path("half"),
        ..config(&corner, 1, 128)
    };
    ends(
        spawn(&corner, &config),
        ExitReason::BadKernel,
        &["half", "is truncated"],
    );
}

/// Gives an Image what alone tells how long its file is, and ours has not: the header of an EFI program, with one section.
fn tell_length(image: &mut [u8]) {
    let length = u32::try_from(image.len()).unwrap().to_le_bytes();
    // Where the header is; in it, how many sections there are; behind it, the length and the start of the first.
    for (at, bytes) in [
        (60, &64u32.to_le_bytes()[..]),
        (64, b"PE\0\0"),
        (70, &1u16.to_le_bytes()),
        (84, &0u16.to_le_bytes()),
        (104, &length),
        (108, &0u32.to_le_bytes()),
    ] {
        image[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[test]
fn absent_kernel_is_named() {
    let corner = Corner::new("vm-absent");
    let config = VmConfig {
        kernel: PathBuf::from("/no/such/kernel"),
        ..config(&corner, 1, 128)
    };
    ends(
        spawn(&corner, &config),
        ExitReason::BadKernel,
        &["/no/such/kernel"],
    );
}

#[test]
fn a_guest_without_init_panics_and_says_so() {
    let corner = Corner::new("vm-panic");
    let config = VmConfig {
        initrd: None,
        serial: None,
        ..config(&corner, 1, 128)
    };
    ends(spawn(&corner, &config), ExitReason::GuestPanic, &["panic"]);
}

#[test]
fn control_socket_pauses_resumes_counts_and_stops() {
    let corner = Corner::new("vm-control");
    let bundle = VmConfig {
        cmdline: "rdinit=/no/init panic=0".into(),
        initrd: None,
        ..config(&corner, 2, 128)
    };
    let mut monitor = spawn(&corner, &bundle);
    let socket = corner.path("control.sock");
    assert!(
        eventually(PATIENCE, || UnixStream::connect(&socket).is_ok()),
        "no control socket"
    );
    let mut control = Talk::to(&socket);
    let mut runs =
        || matches!(control.ask(&Control::Stats), Reply::Stats(stats) if stats.exits > 0);
    assert!(eventually(PATIENCE, &mut runs), "the guest never ran");
    assert_eq!(control.ask(&Control::Pause), Reply::Ok);
    let Reply::Stats(paused) = control.ask(&Control::Stats) else {
        panic!("no stats")
    };
    assert!(paused.paused);
    let Reply::Stats(later) = control.ask(&Control::Stats) else {
        panic!("no stats")
    };
    assert_eq!(later.exits, paused.exits, "a paused guest ran");
    assert_eq!(control.ask(&Control::Resume), Reply::Ok);
    assert!(matches!(
        control.say("{\"op\":\"fly\"}"),
        Reply::Error { .. }
    ));
    assert_eq!(control.ask(&Control::Stop), Reply::Ok);
    assert_eq!(monitor.child().wait().unwrap().code(), Some(0));
    assert!(!socket.exists(), "the control socket is left");
}

struct Talk(BufReader<UnixStream>);

impl Talk {
    fn to(socket: &std::path::Path) -> Self {
        Self(BufReader::new(UnixStream::connect(socket).unwrap()))
    }

    fn ask(&mut self, request: &Control) -> Reply {
        self.say(&serde_json::to_string(request).unwrap())
    }

    fn say(&mut self, line: &str) -> Reply {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        let mut answer = String::new();
        self.0.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }
}
