//! More processes in a running container.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use libcontainer::oci_spec::runtime::Process as ProcessSpec;

use super::{Action, Connection, Container, ContainerError, State, blocking, lock};
use crate::executor::{self, Request};
use crate::process::Process;
use crate::spec::{self, Owner};
use crate::stdio::Streams;

impl Container {
    /// Starts another process, in the cgroup `place` below the container's own if it is named; in a paused container when that has been
    /// resumed, if the caller `waits`.
    ///
    /// # Errors
    /// Neither created nor running, the name is taken, or the program can't be executed.
    pub async fn exec(
        self: &Arc<Self>,
        name: &str,
        json: &[u8],
        connection: Connection,
        place: Option<String>,
        waits: bool,
    ) -> Result<u32, ContainerError> {
        let _turn = self.turn_to_exec(waits).await?;
        self.wake_in_turn().await?;
        let process = spec::prepare_process(json, connection.terminal)?;
        if name.is_empty() || lock(&self.execs).contains_key(name) {
            return Err(ContainerError::ProcessExists {
                id: self.id.clone(),
                process: name.into(),
            });
        }
        lock(&self.execs).insert(name.into(), None);
        let made = self.exec_named(name, &process, connection, place).await;
        if made.is_err() {
            lock(&self.execs).remove(name);
        }
        made
    }

    /// Nobody who waits for a resume holds the turn that it needs.
    async fn turn_to_exec(
        &self,
        waits: bool,
    ) -> Result<tokio::sync::MutexGuard<'_, ()>, ContainerError> {
        loop {
            let turn = self.turn.lock().await;
            if !waits || self.state() != State::Paused {
                self.check(Action::Exec)?;
                return Ok(turn);
            }
            drop(turn);
            self.life.not_paused().await;
        }
    }

    async fn exec_named(
        self: &Arc<Self>,
        name: &str,
        process: &ProcessSpec,
        connection: Connection,
        place: Option<String>,
    ) -> Result<u32, ContainerError> {
        let init = Path::new("/proc").join(self.pid().to_string());
        let owner = Owner::beside(process, &init);
        let file = self.bundle.join("process.json");
        fs::write(&file, serde_json::to_vec(process).unwrap_or_default())
            .map_err(ContainerError::io("write process.json"))?;
        let (streams, ends) = Streams::open(
            &self.tools.dialer,
            connection.ports,
            connection.terminal,
            owner,
        )
        .await
        .map_err(ContainerError::io("connect the streams"))?;
        let request = Request::Exec {
            init_pid: self.pid(),
            bundle: self.bundle.display().to_string(),
            process: file.display().to_string(),
            cgroup: self.cgroup.path().display().to_string(),
            place,
            terminal: connection.terminal_mode(spec::console(process)),
            owner_uid: process.user().uid(),
        };
        let kills_before = self.cgroup.oom_kills();
        let start = self.tools.reaper.start();
        let (pid, terminal) = blocking(move || {
            let made = executor::run(&request, &ends)?;
            // Else our own copy of the process' ends would keep its streams open.
            drop(ends);
            let terminal = made.launch.wait_with_terminal(made.terminal)?;
            Ok((made.pid, terminal))
        })
        .await?;
        let exit = start.expect(pid);
        let process = Arc::new(Process::new(pid, terminal));
        lock(&self.execs).insert(name.into(), Some(process.clone()));
        let container = self.clone();
        let name = name.to_owned();
        tokio::spawn(async move {
            let on_exit = || container.cgroup.oom_kills() > kills_before;
            process.follow(streams, exit, on_exit).await;
            // The keeper has been told: nobody else waits.
            if connection.ports.keeper != 0 {
                container.forget(&name);
            }
        });
        Ok(pid)
    }

    /// The init process for the empty name, else an exec's.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn process(&self, name: &str) -> Result<Arc<Process>, ContainerError> {
        if name.is_empty() {
            return Ok(self.init.clone());
        }
        lock(&self.execs)
            .get(name)
            .cloned()
            .flatten()
            .ok_or_else(|| ContainerError::NoProcess {
                id: self.id.clone(),
                process: name.into(),
            })
    }

    /// Forgets an exec that has ended and was waited for.
    pub fn forget(&self, name: &str) {
        let mut execs = lock(&self.execs);
        if execs
            .get(name)
            .is_some_and(|p| p.as_ref().is_some_and(|p| p.is_finished()))
        {
            execs.remove(name);
        }
    }
}
