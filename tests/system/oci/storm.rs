//! Kills at any moment, many containers at once, a full disk: nothing is left, and nobody waits for ever.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount, umount};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Engine;
use crate::kit::{PATIENCE, eventually};

/// Numbers that differ from run to run; the seed is printed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = u64::from(now.unwrap().subsec_nanos()) | 1;
        println!("seed {seed}");
        Self(seed)
    }

    /// Below `end` (xorshift64).
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// The corner's processes of ours: commands, keepers, monitors. Not `sh`, which has the same environment.
fn victims(engine: &Engine) -> Vec<Pid> {
    let needle = engine.corner.run_dir().display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|process| {
        let pid: i32 = process.file_name().to_str()?.parse().ok()?;
        let program = fs::read_link(process.path().join("exe")).ok()?;
        let ours = program.file_name()?.to_str()?.starts_with("vmbox");
        let environment = fs::read(process.path().join("environ")).ok()?;
        let here = String::from_utf8_lossy(&environment).contains(&needle);
        (ours && here && pid != i32::try_from(std::process::id()).ok()?)
            .then_some(Pid::from_raw(pid))
    });
    pids.collect()
}

/// Reaps what was re-parented to us, until nothing is left to wait for.
fn reap() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}

/// The life of a container, while something of it is killed at a random moment; then what a careful engine does.
fn a_round(engine: &Engine, bundle: &Path, random: &mut Random, life: Duration) {
    let moment = Duration::from_millis(random.below(u64::try_from(life.as_millis()).unwrap() + 1));
    let choice = random.below(1 << 20);
    let bundle = bundle.to_str().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            eventually(moment, || start.elapsed() >= moment);
            let victims = victims(engine);
            if let Some(victim) =
                victims.get(usize::try_from(choice).unwrap() % victims.len().max(1))
            {
                let _ = kill(*victim, Signal::SIGKILL);
            }
        });
        for words in [
            &["create", "--bundle", bundle, "storm"][..],
            &["start", "storm"],
            &["exec", "storm", "true"],
            &["kill", "storm", "KILL"],
            &["delete", "storm"],
        ] {
            let mut command = engine.vmbox(words);
            // The container's own streams are those of `create`: pipes would be waited for.
            let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
            let _ = quiet.status().unwrap();
        }
    });
    let _ = engine.verb(&["delete", "--force", "storm"]);
    engine.verb(&["gc"]).exits(0);
    assert!(eventually(PATIENCE, reap), "a keeper did not end");
}

fn storm(name: &'static str, rounds: usize) {
    let engine = Engine::new(name);
    let before = engine.corner.inventory();
    let bundle = engine.bundle("exec sleep 1000", |_| {});
    let mut random = Random::new();
    let start = Instant::now();
    // The first is killed after its end: how long a life is here.
    a_round(&engine, &bundle, &mut random, Duration::ZERO);
    let (pid, _output) = engine.create("storm", &bundle);
    engine.verb(&["delete", "--force", "storm"]).exits(0);
    waitpid(pid, None).unwrap();
    let life = start.elapsed();
    for _ in 0..rounds {
        a_round(&engine, &bundle, &mut random, life);
        engine.corner.assert_nothing_left(&before);
    }
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn a_kill_at_any_moment_leaves_nothing() {
    storm("oci-storm", 4);
}

#[test]
#[ignore = "takes long under emulation: --tier long"]
fn two_hundred_kills_leave_nothing() {
    storm("oci-long-storm", 200);
}

fn crowd(name: &'static str, count: usize) {
    let engine = Engine::new(name);
    let before = engine.corner.inventory();
    let bundle = engine.bundle("exec sleep 1000", |config| {
        // Each has a cgroup of its own name.
        config["linux"]["cgroupsPath"] = serde_json::Value::Null;
    });
    let bundle = bundle.to_str().unwrap();
    thread::scope(|scope| {
        for number in 0..count {
            let engine = &engine;
            scope.spawn(move || {
                let id = format!("crowd-{number}");
                let mut create = engine.vmbox(&["create", "--bundle", bundle, &id]);
                let status = create
                    .stdout(Stdio::null())
                    .stderr(Stdio::inherit())
                    .status();
                let status = status.unwrap();
                assert!(status.success(), "{id}: {:?}", status.signal());
                engine.verb(&["start", &id]).exits(0);
                engine.verb(&["delete", "--force", &id]).exits(0);
            });
        }
    });
    assert!(eventually(PATIENCE, reap), "a keeper did not end");
    engine.corner.assert_nothing_left(&before);
}

#[test]
#[ignore = "minutes under emulation: `cargo dev test --tier long`"]
fn some_at_once_come_and_go() {
    crowd("oci-crowd", 3);
}

#[test]
#[ignore = "takes long under emulation: --tier long"]
fn fifty_at_once_come_and_go() {
    crowd("oci-long-crowd", 50);
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing() {
    let engine = Engine::new("oci-full");
    let run = engine.corner.run_dir();
    // Too few for a pod's directory and its files.
    let options = "size=64k,nr_inodes=6";
    mount(
        Some("tmpfs"),
        &run,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options),
    )
    .unwrap();
    let bundle = engine.bundle("true", |_| {});
    let create = engine.verb(&["create", "--bundle", bundle.to_str().unwrap(), "full"]);
    let left = fs::read_dir(&run).unwrap().count();
    umount(&run).unwrap();
    create.refuses(1, &["No space left on device"]);
    assert_eq!(left, 0);
}
