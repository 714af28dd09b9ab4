//! The virtual KVM host: QEMU emulating a machine that can run guests, shared by all who need it.
//!
//! ```text
//!   up ──► one QEMU per model, in the background ◄── run, run, run …
//!   users.lock: shared by whoever runs a command; the last one out takes the host down, unless it is kept
//! ```

mod board;
mod client;
mod initramfs;
mod leftover;
mod qemu;
pub mod wire;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::arch::Arch;
use crate::debian;
use crate::hostd::{Plan, SharePlan};
use crate::product::binaries;
use crate::shell::need;
use crate::streams::Streams;
use crate::workspace::{Workspace, lock, make_dir, open_lock, say};

pub use qemu::MEMORY_MIB;

/// How the host counts time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flavour {
    /// As fast as the emulator goes.
    Fast,
    /// One CPU whose time passes only as instructions are executed: figures repeat exactly.
    Counting {
        /// QEMU's `-icount shift`: an instruction takes 2^shift ns.
        shift: u8,
    },
}

/// Which machine is emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model {
    /// Of the host, its guests, and their containers.
    pub arch: Arch,
    /// How its time passes.
    pub flavour: Flavour,
    /// Which of several alike; 0 is the one that developers keep.
    pub ordinal: u8,
}

impl Model {
    /// The one that tests run on.
    pub fn fast(arch: Arch) -> Self {
        Self {
            arch,
            flavour: Flavour::Fast,
            ordinal: 0,
        }
    }

    fn dir(self, workspace: &Workspace) -> PathBuf {
        let name = match (self.flavour, self.ordinal) {
            (Flavour::Fast, 0) => "host".to_owned(),
            (Flavour::Fast, ordinal) => format!("host-{ordinal}"),
            (Flavour::Counting { shift }, _) => format!("host-icount-{shift}"),
        };
        workspace.build_dir(&name, self.arch)
    }
}

/// A host that runs, and this process's right to use it.
#[derive(Debug)]
pub struct Host {
    state: State,
    dir: PathBuf,
    users: File,
}

/// What is remembered about a host between invocations.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    pid: i32,
    port: u16,
    token: String,
    /// What it was booted from; another one is booted when this changes.
    identity: String,
    /// Whether it stays when nobody uses it.
    kept: bool,
}

impl Host {
    /// The running host of this model, or a new one. What an earlier run left behind unusable is ended first.
    pub fn up(workspace: &Workspace, model: Model, keep: bool) -> Result<Self> {
        need(&[board::program(model.arch).1])?;
        let dir = model.dir(workspace);
        make_dir(&dir)?;
        let image = debian::host_image(workspace, model.arch)?;
        let daemon = daemon(workspace, model.arch)?;
        let identity = identity(&image.dir, &daemon)?;

        let _starting = lock(&dir.join("lock"))?;
        let users = open_lock(&dir.join("users"))?;
        let old = running(&dir);
        leftover::end_strays(&dir, old.as_ref().map(|state| state.pid))?;
        let usable = match &old {
            Some(state) => state.is_usable(&identity, &users)?,
            None => false,
        };
        let mut state = match old {
            Some(state) if usable => state,
            old => {
                if let Some(old) = &old {
                    stop(old)?;
                }
                let kept = old.is_some_and(|state| state.kept);
                let new = start(workspace, model, &dir, &image, &daemon, identity)?;
                State { kept, ..new }
            }
        };
        users.lock_shared()?;
        state.kept |= keep;
        remember(&dir, &state)?;
        Ok(Self { state, dir, users })
    }

    /// Runs `argv` in the host; its output goes to `streams`. Returns its exit code.
    pub fn run(
        &self,
        argv: &[String],
        environment: &[(&str, String)],
        streams: &mut Streams,
    ) -> Result<i32> {
        let order = wire::Order {
            token: self.state.token.clone(),
            argv: argv.to_vec(),
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            directory: "/root".into(),
        };
        client::run(
            self.state.port,
            order,
            streams,
            &self.dir.join("console.log"),
        )
    }
}

impl State {
    /// Whether new commands can be run there. If not, nobody does any more when this returns.
    fn is_usable(&self, identity: &str, users: &File) -> Result<bool> {
        if !client::answers(self.port, &self.token) {
            say("the virtual host of an earlier run does not answer: replacing it");
            return Ok(false);
        }
        if self.identity != identity {
            say("the virtual host is of an older build: replacing it when its users have left");
            users.lock()?;
            return Ok(false);
        }
        Ok(true)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.users.unlock();
        let Ok(_starting) = lock(&self.dir.join("lock")) else {
            return;
        };
        let kept = running(&self.dir).is_none_or(|state| state.kept);
        if !kept && self.users.try_lock().is_ok() {
            let _ = stop(&self.state);
        }
    }
}

/// Takes the host of this model down, whoever uses it.
pub fn down(workspace: &Workspace, model: Model) -> Result<()> {
    let dir = model.dir(workspace);
    let _starting = lock(&dir.join("lock"))?;
    let state = running(&dir);
    leftover::end_strays(&dir, state.as_ref().map(|state| state.pid))?;
    state.map_or(Ok(()), |state| stop(&state))
}

/// Builds the program that is PID 1 and daemon of the host.
fn daemon(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    Ok(binaries(workspace, arch, &["vmbox-tests"], "dev")?.join("vmbox-hostd"))
}

fn identity(image: &Path, daemon: &Path) -> Result<String> {
    use sha2::{Digest as _, Sha256};
    let mut hash = Sha256::new();
    hash.update(image.as_os_str().as_encoded_bytes());
    hash.update(fs::read(daemon)?);
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// What the host of this folder is, if its QEMU is alive.
fn running(dir: &Path) -> Option<State> {
    let state: State = serde_json::from_slice(&fs::read(dir.join("state.json")).ok()?).ok()?;
    let command = fs::read(format!("/proc/{}/cmdline", state.pid)).ok()?;
    let marker = qemu::marker(&state.token);
    let ours = command
        .windows(marker.len())
        .any(|window| window == marker.as_bytes());
    ours.then_some(state)
}

fn remember(dir: &Path, state: &State) -> Result<()> {
    let partial = dir.join("state.partial");
    let _ = fs::remove_file(&partial);
    // The token is for this user only.
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(&partial)?;
    file.write_all(&serde_json::to_vec(state)?)?;
    fs::rename(partial, dir.join("state.json"))?;
    Ok(())
}

fn stop(state: &State) -> Result<()> {
    leftover::end(state.pid)
}

/// Boots; the emulator sometimes trips over the kernel patching its own code, so once more if it does.
fn start(
    workspace: &Workspace,
    model: Model,
    dir: &Path,
    image: &debian::HostImage,
    daemon: &Path,
    identity: String,
) -> Result<State> {
    make_dir(&workspace.results())?;
    make_dir(&workspace.product(model.arch))?;
    let token = token()?;
    let mut boot_modules = Vec::new();
    for module in &image.boot_modules {
        boot_modules.push(
            module
                .file_name()
                .context("a module without a name")?
                .to_string_lossy()
                .into_owned(),
        );
    }
    let plan = Plan {
        token: token.clone(),
        boot_modules,
        shares: shares(workspace),
    };
    initramfs::write(
        &dir.join("initramfs.cpio"),
        daemon,
        &plan,
        &image.boot_modules,
    )?;
    let machine = qemu::Machine {
        model,
        dir,
        image: &image.dir,
        shares: &plan.shares,
        token: &token,
    };
    for attempt in [1, 2] {
        say(&format!(
            "booting the virtual {} KVM host (10 to 60 s)",
            model.arch
        ));
        let began = Instant::now();
        let booting = machine.start()?;
        let mut state = State {
            pid: booting.pid,
            port: booting.port,
            token: token.clone(),
            // Should this process be killed meanwhile, the next finds a machine that it can't use, and ends it.
            identity: String::new(),
            kept: false,
        };
        remember(dir, &state)?;
        match booting.wait()? {
            qemu::Boot::Ready => {
                let seconds = began.elapsed().as_secs_f32();
                say(&format!(
                    "the virtual {} host is up after {seconds:.1} s",
                    model.arch
                ));
                state.identity = identity;
                remember(dir, &state)?;
                return Ok(state);
            }
            qemu::Boot::Died(last) if attempt == 1 => {
                say(&format!(
                    "the virtual host died while booting ({last}): booting it once more"
                ));
            }
            qemu::Boot::Died(last) => bail!("the virtual host died twice while booting: {last}"),
        }
    }
    bail!("the virtual host did not boot")
}

fn shares(workspace: &Workspace) -> Vec<SharePlan> {
    let share = |tag: &str, path: PathBuf, writable, immutable| SharePlan {
        tag: tag.into(),
        path,
        writable,
        immutable,
    };
    vec![
        share("checkout", workspace.root.clone(), false, false),
        share("cache", workspace.cache.clone(), false, true),
        share("results", workspace.results(), true, false),
    ]
}

/// 128 random bits in hexadecimal.
fn token() -> Result<String> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
