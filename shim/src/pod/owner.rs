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
    vm::{End, LaunchError, Monitor},
};

/// A guest that has not reported by then hangs. Generous: emulated and overcommitted hosts boot slowly.
const BOOT: Duration = Duration::from_secs(120);
/// A guest asked to end has this long before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);
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
    #[error("the guest's agent did not report within {} s", BOOT.as_secs())]
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

impl Pod {
    /// Starts the VM. It boots while the caller prepares the container.
    ///
    /// # Errors
    /// The host's side can't be made.
    pub fn launch(
        dir: &PodDir,
        vmm: &std::path::Path,
        config: VmConfig,
        journal: &mut Journal,
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
            () = tokio::time::sleep(BOOT) => return Err(PodError::NoAgent),
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

    /// Ends the guest in order, and kills it if it won't.
    pub async fn shutdown(self, ready: Ready) {
        if let Err(error) = ready.agent.shutdown(FAREWELL).await {
            tracing::warn!(%error, "the agent refuses to end the guest");
        }
        self.monitor.finish(FAREWELL).await;
    }

    /// Kills the VM.
    pub async fn kill(self) {
        self.monitor.finish(Duration::ZERO).await;
    }
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
}
