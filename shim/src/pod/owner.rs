//! A pod's owner: the one process that starts its VM, holds the agent's connection, and ends it.

use std::{io, sync::Arc, time::Duration};

use ttrpc::asynchronous::Server;
use vmbox_config::VmConfig;

use super::{
    container::{self, ContainerError, Launch},
    place::PodDir,
};
use crate::{
    guest::{self, Agent, AgentError, Exit, Greeter, GreetingError},
    journal::{Journal, Record, start_ticks},
    user::{
        signals::{Signals, Wish},
        timing::Timing,
    },
    vm::{self, End, LaunchError, Monitor},
};

/// A guest that was asked to end, writes what is dirty to disks and volumes. One that has written nothing for so long is
/// killed. Generous: the disk below may be slow, or a network's.
const STALLED: Duration = Duration::from_secs(120);
/// How often its progress is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// When the connection is lost, the monitor's explanation is waited for this long.
const EXPLANATION: Duration = Duration::from_millis(1500);

/// Why a pod could not be had, or ended too early.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The host's side failed.
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
    /// The monitor could not be started.
    #[error("start the monitor")]
    Launch(#[from] LaunchError),
    /// The VM ended by itself.
    #[error("{}", describe(.0))]
    Ended(End),
    /// The guest runs, but no agent reported.
    #[error("the guest's agent did not report within {} s", vm::BOOT.as_secs())]
    NoAgent,
    /// What reported is not our agent.
    #[error("the guest's agent")]
    Greeting(#[from] GreetingError),
    /// The pod could not be set up in the guest.
    #[error("set the guest up")]
    Setup(#[source] AgentError),
    /// The container failed.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

/// A pod whose VM has been started.
#[derive(Debug)]
pub struct Pod {
    dir: PodDir,
    monitor: Monitor,
    greeter: Option<Greeter>,
}

/// A pod with an agent that listens to us.
pub struct Ready {
    agent: Agent,
    _relay: Server,
}

impl Ready {
    /// The agent.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }
}

impl Pod {
    /// Starts the VM. It boots while the caller prepares the container.
    ///
    /// # Errors
    /// The host's side can't be made.
    pub fn launch(
        dir: &PodDir,
        vmm: &std::path::Path,
        config: VmConfig,
        journal: &Journal,
        timing: &Arc<Timing>,
    ) -> Result<Self, PodError> {
        let listener = dir.vsock_port(vmbox_protocol::AGENT_PORT);
        let greeter = Greeter::listen(&listener)
            .map_err(|error| PodError::Host("listen for the agent", error))?;
        let monitor = Monitor::launch(vmm, config, &dir.monitor_log(), timing)?;
        // If it is gone already, there is nothing to undo.
        if let Some(start_ticks) = start_ticks(monitor.pid()) {
            let record = Record::Monitor {
                pid: monitor.pid(),
                start_ticks,
            };
            journal
                .record(&record)
                .map_err(|error| PodError::Host("write the journal", error))?;
        }
        Ok(Self {
            dir: dir.clone(),
            monitor,
            greeter: Some(greeter),
        })
    }

    /// A handle that resolves when the VM has ended.
    pub fn ended(&self) -> impl Future<Output = PodError> + use<> {
        let ended = self.monitor.ended();
        async { PodError::Ended(ended.await) }
    }

    /// Waits for the agent and sets the guest up.
    ///
    /// # Errors
    /// The VM ended, the agent stayed silent, or a signal came first.
    pub async fn ready(
        &mut self,
        hostname: &str,
        dax: bool,
        signals: &mut Signals,
        timing: &Timing,
    ) -> Result<Ready, PodError> {
        let Some(greeter) = self.greeter.take() else {
            return Err(PodError::NoAgent);
        };
        let client = tokio::select! {
            client = greeter.accept() => self.explained(client).await?,
            end = self.monitor.ended() => return Err(PodError::Ended(end)),
            signal = first_fatal(signals) => return Err(ContainerError::Interrupted(signal).into()),
            () = vm::boot_is_overdue(self.monitor.pid()) => return Err(PodError::NoAgent),
        };
        timing.mark("agent ready");
        let agent = Agent::new(client);
        let setup = agent.setup(hostname, dax).await.map_err(PodError::Setup);
        self.explained(setup).await?;
        let relay = guest::serve_relay(&self.dir.agent(), agent.client())
            .await
            .map_err(|error| PodError::Host("serve the pod's relay", error))?;
        Ok(Ready {
            agent,
            _relay: relay,
        })
    }

    /// Runs a container in it.
    ///
    /// # Errors
    /// It could not run, or the VM ended.
    pub async fn run(
        &self,
        ready: &Ready,
        launch: &Launch<'_>,
        signals: &mut Signals,
    ) -> Result<Exit, PodError> {
        let exit = container::run(&ready.agent, launch, signals)
            .await
            .map_err(PodError::from);
        self.explained(exit).await
    }

    /// If something failed because the VM ended, says why the VM ended instead.
    async fn explained<T, E: Into<PodError>>(&self, result: Result<T, E>) -> Result<T, PodError> {
        let error = match result {
            Ok(value) => return Ok(value),
            Err(error) => error.into(),
        };
        if !guest_is_gone(&error) {
            return Err(error);
        }
        match tokio::time::timeout(EXPLANATION, self.monitor.ended()).await {
            Ok(end) => Err(PodError::Ended(end)),
            Err(_) => Err(error),
        }
    }

    /// Ends the guest in order: nothing that it wrote is lost, however long its disks take. Kills it if it makes no
    /// progress, or if the user insists by a second signal; and says so.
    pub async fn shutdown(self, ready: Ready, signals: &mut Signals) {
        let pid = self.monitor.pid();
        let ended = self.monitor.ended();
        let goodbye = async move {
            if let Err(error) = ready.agent.shutdown().await {
                tracing::warn!(%error, "the agent refuses to end the guest");
                return;
            }
            // The agent waits for our end of the connection to close.
            drop(ready);
            ended.await;
        };
        tokio::select! {
            () = goodbye => {}
            () = insisted(signals) => tracing::warn!("the guest is killed: what it had not written to its disks is lost"),
            () = stalled(LOOK, STALLED, || bytes_written(pid)) => tracing::warn!(
                "the guest was asked to end and has written nothing for {} s: it is killed, and what it had not \
                 written to its disks is lost",
                STALLED.as_secs()
            ),
        }
        self.monitor.finish(Duration::ZERO).await;
    }

    /// Kills the VM.
    pub async fn kill(self) {
        self.monitor.finish(Duration::ZERO).await;
    }
}

/// Waits for two signals; the first is answered.
async fn insisted(signals: &mut Signals) {
    first_fatal(signals).await;
    tracing::warn!("the guest is still writing to its disks; another signal kills it");
    first_fatal(signals).await;
}

/// Waits until `progress` has been the same for so long; looks that often.
async fn stalled(look: Duration, patience: Duration, progress: impl Fn() -> Option<u64>) {
    let mut last = progress();
    let mut since = tokio::time::Instant::now();
    while since.elapsed() < patience {
        tokio::time::sleep(look).await;
        let now = progress();
        if now != last {
            last = now;
            since = tokio::time::Instant::now();
        }
    }
}

/// What a process has written so far: `wchar` of proc_pid_io(5).
fn bytes_written(pid: u32) -> Option<u64> {
    let counters = std::fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let mut lines = counters.lines();
    lines
        .find_map(|line| line.strip_prefix("wchar: "))?
        .parse()
        .ok()
}

async fn first_fatal(signals: &mut Signals) -> u32 {
    loop {
        if let Wish::Forward(signal) = signals.next().await {
            return signal;
        }
    }
}

fn guest_is_gone(error: &PodError) -> bool {
    match error {
        PodError::Setup(AgentError::Gone)
        | PodError::Container(
            ContainerError::Create(AgentError::Gone)
            | ContainerError::Start(AgentError::Gone)
            | ContainerError::Wait(AgentError::Gone),
        )
        | PodError::Greeting(GreetingError::Io(_)) => true,
        PodError::Host(..)
        | PodError::Launch(_)
        | PodError::Ended(_)
        | PodError::NoAgent
        | PodError::Greeting(_)
        | PodError::Setup(_)
        | PodError::Container(_) => false,
    }
}

/// The cause, and of the guest's log only the lines that tell something.
fn describe(end: &End) -> String {
    let telling = telling_lines(&end.guest_log);
    if telling.is_empty() {
        return end.message.clone();
    }
    format!("{} | guest: {}", end.message, telling.join(" | "))
}

const TELLING: &[&str] = &[
    "panic",
    "bug:",
    "oops",
    "out of memory",
    "vmbox-agent",
    "unable to",
    "fatal",
    "error",
];
const NOISE: &[&str] = &["---[ end", "rebooting in", "kernel offset"];

fn telling_lines(log: &[String]) -> Vec<&str> {
    let is_telling = |line: &str| {
        let line = line.to_ascii_lowercase();
        TELLING.iter().any(|word| line.contains(word))
            && !NOISE.iter().any(|word| line.contains(word))
    };
    let mut lines: Vec<&str> = log
        .iter()
        .map(|line| without_level(line.trim()))
        .filter(|line| is_telling(line))
        .collect();
    let surplus = lines.len().saturating_sub(3);
    lines.drain(..surplus);
    lines
}

/// Kernel log lines begin with their level: `<0>`.
fn without_level(line: &str) -> &str {
    match line.split_once('>') {
        Some((level, rest)) if level.starts_with('<') && level.len() <= 4 => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_guests_log_only_what_tells_something_is_shown() {
        let log = [
            "[ 1.0] virtio_blk virtio2: 1/0/0 queues",
            "<0>[ 2.0] Kernel panic - not syncing: Attempted to kill init!",
            "[ 2.0] ---[ end Kernel panic",
        ];
        let end = End {
            reason: None,
            message: "the guest kernel panicked".into(),
            guest_log: log.map(Into::into).to_vec(),
        };
        assert_eq!(
            describe(&end),
            "the guest kernel panicked | guest: [ 2.0] Kernel panic - not syncing: Attempted to kill init!"
        );
    }

    #[tokio::test]
    async fn a_guest_that_writes_is_waited_for_until_it_hangs() {
        let (look, patience) = (Duration::from_micros(100), Duration::from_millis(1));
        let looks = std::cell::Cell::new(0);
        // Far more looks than fit into the patience.
        let progress = || {
            looks.set(looks.get() + 1);
            Some(looks.get().min(100))
        };
        stalled(look, patience, progress).await;
        assert!(looks.get() > 100, "{}", looks.get());
    }

    #[test]
    fn what_a_process_writes_is_progress() {
        let pid = std::process::id();
        let before = bytes_written(pid).unwrap();
        std::fs::write("/dev/null", [0; 4096]).unwrap();
        assert!(bytes_written(pid).unwrap() >= before + 4096);
    }
}
