//! Where a container is in its life, what may be done there, and why something was not.
//!
//! ```text
//!             create             start            init exits
//!  (nothing) ───────► Creating ─► Created ─► Running ─► Stopped ─► (deleted)
//!                        │           │      │     ▲       ▲
//!                        └ fails:    │ pause│     │resume │ init exits (killed while paused)
//!                          nothing   │      ▼     │       │
//!                          is left   │      Paused ───────┤
//!                                    └────────────────────┘ init killed before start
//! ```
//! Stopped is for ever.
//! States are those of OCI runtime-spec runtime.md#state, and `paused`.

use std::path::PathBuf;

use nix::errno::Errno;
use tokio::sync::watch;

use crate::cgroup::LimitError;
use crate::executor::Failure;
use crate::spec::{ContainerId, SpecError};

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl State {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }

    /// Whether something may be done in this state.
    pub fn allows(self, action: Action) -> bool {
        match action {
            Action::Start => self == Self::Created,
            Action::Exec => matches!(self, Self::Created | Self::Running),
            Action::Pause => self == Self::Running,
            Action::Resume => self == Self::Paused,
            Action::Kill | Action::Update => {
                matches!(self, Self::Created | Self::Running | Self::Paused)
            }
            Action::Delete => self == Self::Stopped,
            Action::DeleteByForce => self != Self::Creating,
        }
    }
}

/// The state of one container, which others wait for.
#[derive(Debug)]
pub struct Life(watch::Sender<State>);

impl Life {
    /// That of a container which has just been created.
    pub fn of_created() -> Self {
        Self(watch::Sender::new(State::Created))
    }

    /// Where it is now.
    pub fn state(&self) -> State {
        *self.0.borrow()
    }

    /// Goes on to a state, unless it has stopped meanwhile.
    pub fn go_to(&self, next: State) {
        self.0.send_if_modified(|state| {
            let changes = *state != State::Stopped && *state != next;
            if changes {
                *state = next;
            }
            changes
        });
    }

    /// Waits while it is paused.
    pub async fn not_paused(&self) {
        let mut states = self.0.subscribe();
        // The sender is ours, and lives as long as this borrow.
        let _ = states.wait_for(|state| *state != State::Paused).await;
    }
}

/// What can be asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start,
    Exec,
    Pause,
    Resume,
    Kill,
    Update,
    Delete,
    DeleteByForce,
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Exec => "exec in",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Kill => "signal",
            Self::Update => "update",
            Self::Delete | Self::DeleteByForce => "delete",
        }
    }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("root.path: {0} is not a directory in the guest")]
    NoRoot(PathBuf),
    #[error("no container {0}")]
    Unknown(String),
    #[error("container {0} exists already")]
    Exists(ContainerId),
    #[error("container {id} has no process {process:?}")]
    NoProcess { id: ContainerId, process: String },
    #[error("container {id} has a process {process:?} already")]
    ProcessExists { id: ContainerId, process: String },
    #[error("can't {} container {id}: it is {}", action.verb(), state.name())]
    State {
        id: ContainerId,
        action: Action,
        state: State,
    },
    #[error("{0} has no terminal")]
    NoTerminal(String),
    #[error("signal {signal}: {source}")]
    Signal { signal: u32, source: Errno },
    #[error(transparent)]
    Executor(#[from] Failure),
    #[error("{step}: {source}")]
    Io {
        step: String,
        source: std::io::Error,
    },
}

impl ContainerError {
    pub(crate) fn io(step: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let step = step.into();
        move |source| Self::Io { step, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::*;
    use State::*;

    #[test]
    fn each_state_allows_what_the_picture_shows() {
        let allowed = |state: State| -> Vec<Action> {
            [
                Start,
                Exec,
                Pause,
                Resume,
                Kill,
                Update,
                Delete,
                DeleteByForce,
            ]
            .into_iter()
            .filter(|&a| state.allows(a))
            .collect()
        };
        assert_eq!(allowed(Creating), []);
        assert_eq!(allowed(Created), [Start, Exec, Kill, Update, DeleteByForce]);
        assert_eq!(allowed(Running), [Exec, Pause, Kill, Update, DeleteByForce]);
        assert_eq!(allowed(Paused), [Resume, Kill, Update, DeleteByForce]);
        assert_eq!(allowed(Stopped), [Delete, DeleteByForce]);
    }

    #[tokio::test]
    async fn who_waits_for_a_paused_container_learns_that_it_goes_on() {
        let life = std::sync::Arc::new(Life::of_created());
        life.not_paused().await;
        life.go_to(Paused);
        let waits = tokio::spawn({
            let life = life.clone();
            async move { life.not_paused().await }
        });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        life.go_to(Running);
        waits.await.unwrap();
    }

    #[test]
    fn stopped_is_for_ever() {
        let life = Life::of_created();
        life.go_to(Stopped);
        life.go_to(Running);
        assert_eq!(life.state(), Stopped);
    }

    #[test]
    fn refusal_names_action_and_state() {
        let error = ContainerError::State {
            id: ContainerId::parse("web").unwrap(),
            action: Exec,
            state: Paused,
        };
        assert_eq!(
            error.to_string(),
            "can't exec in container web: it is paused"
        );
    }
}
