//! One container from create to delete; its states are drawn in `state.rs`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use crate::cgroup::{Cgroup, Program};
use crate::executor::{self, Failure, Launch, Request};
use crate::host::Dialer;
use crate::process::Process;
use crate::reaper::Reaper;
use crate::spec::{self, ContainerId, Prepared};
use crate::state::Life;
pub use crate::state::{Action, ContainerError, State};
use crate::stdio::{Ports, Streams, TerminalMode};
use crate::traces::remove_traces;

mod execs;

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
    /// Makes a container whose init waits for [`Self::start`]. A failure leaves nothing of it.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn create(
        id: ContainerId,
        mut prepared: Prepared,
        connection: Connection,
        tools: Tools,
    ) -> Result<Arc<Self>, ContainerError> {
        let root = spec::root(&prepared.spec);
        if !root.is_dir() {
            return Err(ContainerError::NoRoot(root));
        }
        prepared.fit_to_root(|path| executor::inside::mode(&root, path));
        let bundle = Path::new(BUNDLES).join(id.as_str());
        let cgroup = Cgroup::of(&id);
        fs::create_dir_all(&bundle).map_err(ContainerError::io("create the bundle"))?;
        executor::hook::install(&mut prepared.spec, &prepared.touches, &bundle)
            .map_err(ContainerError::io("write the hooks"))?;
        let made = Self::create_in(&id, &bundle, &cgroup, &prepared, connection, tools).await;
        if made.is_err() {
            remove_traces(&id, &bundle, &cgroup).await;
        }
        made
    }

    async fn create_in(
        id: &ContainerId,
        bundle: &Path,
        cgroup: &Cgroup,
        prepared: &Prepared,
        connection: Connection,
        tools: Tools,
    ) -> Result<Arc<Self>, ContainerError> {
        write(bundle, "config.json", &prepared.spec)?;
        write(bundle, executor::confine::FILE, &prepared.confinement)?;
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
        let start = tools.reaper.start();
        let request = Request::Create {
            id: id.to_string(),
            bundle: bundle.display().to_string(),
            terminal: connection.terminal,
            read_only_dev: prepared.read_only_dev,
        };
        let made = blocking(move || executor::run(&request, &ends))
            .await
            .map_err(|e| with_hook(e, bundle))
            .map_err(|e| with_cwd(e, &prepared.spec))?;
        cgroup.limit_pids(prepared.resources.as_ref())?;
        let exit = start.expect(made.pid);
        if let Some(terminal) = &made.terminal {
            if let Some(mode) = connection.terminal_mode(prepared.console) {
                mode.apply(terminal)
                    .map_err(ContainerError::io("set the terminal up"))?;
            }
            // libcontainer leaves the terminal to root; a user who can't open it again has no working /dev/stderr.
            let _ = nix::unistd::chown(
                format!("/proc/{}/fd/0", made.pid).as_str(),
                Some(prepared.owner.uid.into()),
                None,
            );
        }
        let init = Arc::new(Process::new(made.pid, made.terminal));
        let container = Arc::new(Self {
            id: id.clone(),
            tools: tools.clone(),
            bundle: bundle.into(),
            cgroup: cgroup.clone(),
            devices: Mutex::new(devices),
            life: Life::of_created(),
            launch: Mutex::new(Some(made.launch)),
            init,
            execs: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        let followed = container.clone();
        tokio::spawn(async move {
            let on_exit = || {
                followed.life.go_to(State::Stopped);
                // What shares no PID namespace with init outlives it otherwise, and holds its streams.
                followed.cgroup.kill();
                followed.cgroup.oom_kills() > 0
            };
            followed.init.follow(streams, exit, on_exit).await;
        });
        Ok(container)
    }

    /// Its init's process id.
    pub fn pid(&self) -> u32 {
        self.init.pid
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
        let socket = Path::new(executor::STATE)
            .join(self.id.as_str())
            .join("notify.sock");
        let launch = lock(&self.launch).take();
        blocking(move || {
            notify(&socket).map_err(|error| Failure {
                kind: executor::FailureKind::Other,
                message: format!("start: {error}"),
            })?;
            launch.map_or(Ok(()), Launch::wait)
        })
        .await?;
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
            self.cgroup.kill();
            return Ok(());
        }
        self.check(Action::Kill)?;
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
        self.cgroup.kill();
        self.init.wait().await;
        remove_traces(&self.id, &self.bundle, &self.cgroup).await;
        Ok(())
    }
}

fn write(bundle: &Path, name: &str, content: &impl serde::Serialize) -> Result<(), ContainerError> {
    serde_json::to_vec(content)
        .map_err(std::io::Error::from)
        .and_then(|text| fs::write(bundle.join(name), text))
        .map_err(ContainerError::io(format!("write {name}")))
}

/// libcontainer says that a hook failed, but not which.
fn with_hook(error: ContainerError, bundle: &Path) -> ContainerError {
    match (error, executor::hook::failure(bundle)) {
        (ContainerError::Executor(mut failure), Some(which))
            if failure.message.contains("hook") =>
        {
            failure.message = if which.contains(": ") {
                which
            } else {
                format!("{which}: {}", failure.message)
            };
            failure.into()
        }
        (error, _) => error,
    }
}

/// libcontainer says that it could not chdir, but not where to.
fn with_cwd(error: ContainerError, spec: &libcontainer::oci_spec::runtime::Spec) -> ContainerError {
    match (error, spec.process()) {
        (ContainerError::Executor(mut failure), Some(process))
            if failure.message.contains("failed to chdir") =>
        {
            failure.message = format!(
                "process.cwd: {}: {}",
                process.cwd().display(),
                failure.message
            );
            failure.into()
        }
        (error, _) => error,
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

/// libcontainer's init waits on this socket. By its short name, as a socket's path has room for 107 characters only.
fn notify(socket: &Path) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let directory = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let short = format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd());
    std::os::unix::net::UnixStream::connect(short)?.write_all(b"start")
}
