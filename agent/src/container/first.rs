//! A container's first process: made with the container, or, a sandbox's that rests, when something needs it.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::oneshot;

use super::{Action, Connection, Container, ContainerError, State, blocking, lock};
use crate::executor::{self, Failure, Launch, Request};
use crate::reaper::{ExitStatus, Reaper};
use crate::spec::{self, ContainerId, Prepared};

/// What it is made of.
#[derive(Debug)]
pub struct Recipe {
    pub id: ContainerId,
    pub bundle: PathBuf,
    pub prepared: Prepared,
    pub connection: Connection,
    /// Its ends of its streams.
    pub ends: Arc<Vec<OwnedFd>>,
}

/// It waits for its start.
#[derive(Debug)]
pub struct First {
    pub pid: u32,
    pub terminal: Option<OwnedFd>,
    pub launch: Launch,
    pub exit: oneshot::Receiver<ExitStatus>,
}

impl Recipe {
    /// Has the executor make it.
    ///
    /// # Errors
    /// Which step failed, and why.
    pub async fn make(&self, reaper: &Reaper) -> Result<First, ContainerError> {
        let spec = self.write()?;
        let start = reaper.start();
        let request = Request::Create {
            id: self.id.to_string(),
            bundle: self.bundle.display().to_string(),
            terminal: self.connection.terminal,
            read_only_dev: self.prepared.read_only_dev,
        };
        let ends = self.ends.clone();
        let made = blocking(move || executor::run(&request, &ends))
            .await
            .map_err(|e| with_hook(e, &self.bundle))
            .map_err(|e| with_cwd(e, &spec))?;
        let exit = start.expect(made.pid);
        if let Some(terminal) = &made.terminal {
            self.set_up(terminal, made.pid)?;
        }
        Ok(First {
            pid: made.pid,
            terminal: made.terminal,
            launch: made.launch,
            exit,
        })
    }

    /// Writes the bundle, fitted to the root file system; what is in its config.json.
    fn write(&self) -> Result<libcontainer::oci_spec::runtime::Spec, ContainerError> {
        let root = spec::root(&self.prepared.spec);
        if !root.is_dir() {
            return Err(ContainerError::NoRoot(root));
        }
        let mut prepared = self.prepared.clone();
        prepared.fit_to_root(|path| executor::inside::mode(&root, path));
        executor::hook::install(&mut prepared.spec, &prepared.touches, &self.bundle)
            .map_err(ContainerError::io("write the hooks"))?;
        self.write_file("config.json", &prepared.spec)?;
        self.write_file(executor::confine::FILE, &prepared.confinement)?;
        Ok(prepared.spec)
    }

    fn write_file(&self, name: &str, content: &impl Serialize) -> Result<(), ContainerError> {
        serde_json::to_vec(content)
            .map_err(std::io::Error::from)
            .and_then(|text| fs::write(self.bundle.join(name), text))
            .map_err(ContainerError::io(format!("write {name}")))
    }

    fn set_up(&self, terminal: &OwnedFd, pid: u32) -> Result<(), ContainerError> {
        if let Some(mode) = self.connection.terminal_mode(self.prepared.console) {
            mode.apply(terminal)
                .map_err(ContainerError::io("set the terminal up"))?;
        }
        // libcontainer leaves the terminal to root; a user who can't open it again has no working /dev/stderr.
        let _ = nix::unistd::chown(
            format!("/proc/{pid}/fd/0").as_str(),
            Some(self.prepared.owner.uid.into()),
            None,
        );
        Ok(())
    }
}

impl Container {
    /// Makes its process if it rests, and starts it if the container was started.
    ///
    /// # Errors
    /// Paused, or the process can't be made: then it goes on resting. Or it can't be started, which is its end.
    pub async fn wake(&self) -> Result<(), ContainerError> {
        let _turn = self.turn.lock().await;
        self.wake_in_turn().await
    }

    /// The same for who has the turn.
    pub(super) async fn wake_in_turn(&self) -> Result<(), ContainerError> {
        if lock(&self.rest).is_none() {
            return Ok(());
        }
        self.check(Action::Exec)?;
        let Some(recipe) = lock(&self.rest).take() else {
            return Ok(());
        };
        let first = match recipe.make(&self.tools.reaper).await {
            Ok(first) => first,
            Err(error) => {
                self.rest_again(recipe);
                return Err(error);
            }
        };
        if !self.init.wake(first.pid, first.exit) {
            // It was ended before this one could have been.
            self.cgroup.kill();
            return self.check(Action::Exec);
        }
        *lock(&self.launch) = Some(first.launch);
        match self.state() {
            State::Running => self.launch().await,
            State::Creating | State::Created | State::Paused | State::Stopped => Ok(()),
        }
    }

    fn rest_again(&self, recipe: Recipe) {
        self.cgroup.kill();
        let _ = fs::remove_dir_all(Path::new(executor::STATE).join(self.id.as_str()));
        if self.state() != State::Stopped {
            *lock(&self.rest) = Some(recipe);
        }
    }

    /// Lets init execute its program.
    pub(super) async fn launch(&self) -> Result<(), ContainerError> {
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
        .await
    }
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

/// libcontainer's init waits on this socket. By its short name, as a socket's path has room for 107 characters only.
fn notify(socket: &Path) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::fd::AsRawFd;
    let directory = fs::File::open(socket.parent().unwrap_or(Path::new("/")))?;
    let short = format!("/proc/self/fd/{}/notify.sock", directory.as_raw_fd());
    std::os::unix::net::UnixStream::connect(short)?.write_all(b"start")
}
