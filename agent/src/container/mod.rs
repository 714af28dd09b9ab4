//! One container from create to delete; its states are drawn in `state.rs`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use tokio::sync::oneshot;

use crate::cgroup::{Cgroup, Program};
use crate::executor::{Failure, Launch};
use crate::host::Dialer;
use crate::process::Process;
use crate::reaper::{ExitStatus, Reaper};
use crate::spec::{self, ContainerId, Prepared};
use crate::state::Life;
pub use crate::state::{Action, ContainerError, State};
use crate::stdio::{Ports, Streams, TerminalMode};
use crate::traces::remove_traces;

mod execs;
mod first;

use first::Recipe;

/// A directory per container with its config.json.
pub const BUNDLES: &str = "/run/vmbox/bundles";

/// What a container needs of the pod.
#[derive(Debug, Clone)]
pub struct Tools {
    pub reaper: Reaper,
    pub dialer: Dialer,
}

/// How a process is connected.
#[derive(Debug, Clone, Copy, Default)]
pub struct Connection {
    pub terminal: bool,
    pub ports: Ports,
    pub columns: u32,
    pub rows: u32,
    pub plain_newlines: bool,
}

impl Connection {
    /// How a terminal is to be, if there is to be one: as the host says, or else as the spec does.
    fn terminal_mode(&self, spec: Option<(u32, u32)>) -> Option<TerminalMode> {
        let asked =
            Some((self.columns, self.rows)).filter(|&(columns, rows)| columns > 0 && rows > 0);
        self.terminal.then_some(TerminalMode {
            size: asked.or(spec),
            plain_newlines: self.plain_newlines,
        })
    }
}

/// A container that was created.
#[derive(Debug)]
pub struct Container {
    id: ContainerId,
    tools: Tools,
    bundle: PathBuf,
    cgroup: Cgroup,
    /// The device rules in force.
    devices: Mutex<Program>,
    life: Life,
    launch: Mutex<Option<Launch>>,
    init: Arc<Process>,
    /// What init will be made of, while it rests.
    rest: Mutex<Option<Recipe>>,
    execs: Mutex<HashMap<String, Option<Arc<Process>>>>,
    /// Held by what must not overlap in one container: start, exec, pause, resume, delete.
    turn: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what blocks away from the agent's only thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, ContainerError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => Err(ContainerError::Io {
            step: "executor".into(),
            source: error.into(),
        }),
    }
}

impl Container {
    /// Makes a container whose init waits for [`Self::start`], or `rests` until something needs it. A failure leaves nothing
    /// of it.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn create(
        id: ContainerId,
        prepared: Prepared,
        connection: Connection,
        tools: Tools,
        rests: bool,
    ) -> Result<Arc<Self>, ContainerError> {
        let bundle = Path::new(BUNDLES).join(id.as_str());
        let cgroup = Cgroup::of(&id);
        fs::create_dir_all(&bundle).map_err(ContainerError::io("create the bundle"))?;
        let made = Self::create_in(&id, &bundle, &cgroup, prepared, connection, tools, rests).await;
        if made.is_err() {
            remove_traces(&id, &bundle, &cgroup).await;
        }
        made
    }

    async fn create_in(
        id: &ContainerId,
        bundle: &Path,
        cgroup: &Cgroup,
        prepared: Prepared,
        connection: Connection,
        tools: Tools,
        rests: bool,
    ) -> Result<Arc<Self>, ContainerError> {
        let (streams, ends) = Streams::open(
            &tools.dialer,
            connection.ports,
            connection.terminal,
            prepared.owner,
        )
        .await
        .map_err(ContainerError::io("connect the streams"))?;
        for (name, value) in &prepared.pod_sysctls {
            let file = Path::new("/proc/sys").join(name.replace('.', "/"));
            fs::write(&file, value).map_err(ContainerError::io(format!("linux.sysctl.{name}")))?;
        }
        let linux = prepared.spec.linux().as_ref();
        let listed = linux.and_then(|linux| linux.devices().as_deref());
        let devices = cgroup.create(prepared.resources.as_ref(), listed.unwrap_or_default())?;
        let recipe = Recipe {
            id: id.clone(),
            bundle: bundle.into(),
            prepared,
            connection,
            ends: Arc::new(ends),
        };
        let (init, exit, launch) = match rests {
            true => {
                let (init, exit) = Process::resting();
                (init, exit, None)
            }
            false => {
                let first = recipe.make(&tools.reaper).await?;
                let init = Process::new(first.pid, first.terminal);
                (init, first.exit, Some(first.launch))
            }
        };
        cgroup.limit_pids(recipe.prepared.resources.as_ref())?;
        let container = Arc::new(Self {
            id: id.clone(),
            tools: tools.clone(),
            bundle: bundle.into(),
            cgroup: cgroup.clone(),
            devices: Mutex::new(devices),
            life: Life::of_created(),
            launch: Mutex::new(launch),
            init: Arc::new(init),
            // Else dropped: our own copy of the process' ends would keep its streams open.
            rest: Mutex::new(rests.then_some(recipe)),
            execs: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        tokio::spawn(container.clone().follow(streams, exit));
        Ok(container)
    }

    /// To its end.
    async fn follow(self: Arc<Self>, streams: Streams, exit: oneshot::Receiver<ExitStatus>) {
        let on_exit = || {
            self.life.go_to(State::Stopped);
            drop(lock(&self.rest).take());
            // What shares no PID namespace with init outlives it otherwise, and holds its streams.
            self.cgroup.kill();
            self.cgroup.oom_kills() > 0
        };
        self.init.follow(streams, exit, on_exit).await;
    }

    /// Its init's process id; 0 while that rests.
    pub fn pid(&self) -> u32 {
        self.init.pid()
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.life.state()
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    fn check(&self, action: Action) -> Result<(), ContainerError> {
        let state = self.state();
        if state.allows(action) {
            Ok(())
        } else {
            Err(ContainerError::State {
                id: self.id.clone(),
                action,
                state,
            })
        }
    }

    /// Lets init execute its program.
    ///
    /// # Errors
    /// Not created, or the program can't be executed; then the container has stopped.
    pub async fn start(&self) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().await;
        self.check(Action::Start)?;
        if lock(&self.rest).is_none() {
            self.launch().await?;
        }
        self.life.go_to(State::Running);
        Ok(())
    }

    /// Signals init, or every process.
    ///
    /// # Errors
    /// It has stopped, or there is no such signal.
    pub fn kill(&self, signal: u32, all: bool) -> Result<(), ContainerError> {
        if !all {
            self.check(Action::Kill)?;
            return signal_process(&self.init, signal);
        }
        if signal == libc::SIGKILL as u32 {
            self.kill_all();
            return Ok(());
        }
        self.check(Action::Kill)?;
        if lock(&self.rest).is_some() {
            return signal_process(&self.init, signal);
        }
        let number = i32::try_from(signal).ok().filter(|n| (0..=64).contains(n));
        let number = number.ok_or(ContainerError::Signal {
            signal,
            source: Errno::EINVAL,
        })?;
        for pid in self.cgroup.processes() {
            // SAFETY: kill takes two integers. One that has just ended gives ESRCH, which is as good.
            unsafe { libc::kill(pid as libc::pid_t, number) };
        }
        Ok(())
    }

    /// Kills every process, and a container whose process rests.
    pub fn kill_all(&self) {
        self.cgroup.kill();
        if self.pid() == 0 {
            // It may have ended.
            let _ = self.init.signal(libc::SIGKILL as u32);
        }
    }

    /// Changes limits; those that are not named stay.
    ///
    /// # Errors
    /// It has stopped, or the limit that can't be had; then none has changed.
    pub async fn update(&self, json: &[u8]) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().await;
        self.check(Action::Update)?;
        let resources = spec::parse_resources(json)?;
        let mut devices = lock(&self.devices);
        if let Some(new) = self.cgroup.update(&resources, &devices)? {
            *devices = new;
        }
        Ok(())
    }

    /// Waits until it has lost more than `seen` processes for want of memory, or has stopped. Answers how many, and whether.
    ///
    /// # Errors
    /// Its cgroup can't be watched.
    pub async fn wait_for_oom(&self, seen: u64) -> Result<(u64, bool), ContainerError> {
        let oom = crate::cgroup::wait_for_oom(&self.cgroup, seen);
        tokio::select! {
            waited = oom => waited.map_err(ContainerError::io("memory.events"))?,
            _ = self.init.wait() => {}
        }
        Ok((self.cgroup.oom_kills(), self.init.is_finished()))
    }

    /// Stops every process, and answers when all have stopped.
    ///
    /// # Errors
    /// Not running, or the kernel refused.
    pub async fn pause(&self) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().await;
        self.check(Action::Pause)?;
        self.freeze(true, State::Paused).await
    }

    /// Lets every process go on.
    ///
    /// # Errors
    /// Not paused, or the kernel refused.
    pub async fn resume(&self) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().await;
        self.check(Action::Resume)?;
        self.freeze(false, State::Running).await
    }

    async fn freeze(&self, frozen: bool, then: State) -> Result<(), ContainerError> {
        self.cgroup
            .freeze(frozen)
            .map_err(ContainerError::io("cgroup.freeze"))?;
        let cgroup = self.cgroup.clone();
        let settled = move || {
            !cgroup.path().exists() || !cgroup.is_populated() || cgroup.is_frozen() == frozen
        };
        crate::cgroup::wait_for_event(&self.cgroup, settled)
            .await
            .map_err(ContainerError::io("cgroup.events"))?;
        self.life.go_to(then);
        Ok(())
    }

    /// Removes what is left of it. With `force` it is killed first.
    ///
    /// # Errors
    /// It has not stopped.
    pub async fn delete(&self, force: bool) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().await;
        self.check(if force {
            Action::DeleteByForce
        } else {
            Action::Delete
        })?;
        self.kill_all();
        self.init.wait().await;
        remove_traces(&self.id, &self.bundle, &self.cgroup).await;
        Ok(())
    }
}

/// Sends a signal; that the process has ended is said as the state it is.
///
/// # Errors
/// The kernel refused.
pub fn signal_process(process: &Process, signal: u32) -> Result<(), ContainerError> {
    process
        .signal(signal)
        .map_err(|source| ContainerError::Signal { signal, source })
}
