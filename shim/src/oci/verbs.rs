//! The verbs that are one question to the agent, or to the record: start, state, kill, pause, resume.

use std::{
    io::{self, Write},
    time::Duration,
};

use rustix::process::Signal;

use super::{
    Context,
    args::KillArgs,
    error::OciError,
    hooks::HostHooks,
    pods,
    record::{Phase, Record, Status},
    signal,
    store::{self, Held},
};
use crate::{
    guest::{Agent, AgentError},
    network,
    pod::{ContainerId, place::PodDir},
};

/// Has the agent of a container's pod do something, for a program without a runtime.
///
/// # Errors
/// The pod's agent can't be reached, or refused.
pub fn ask<T>(
    record: &Record,
    step: &'static str,
    request: impl AsyncFnOnce(&Agent) -> Result<T, AgentError>,
) -> Result<T, OciError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(OciError::host("start the event loop"))?;
    runtime.block_on(async {
        let agent = pods::connect(&PodDir::at(record.pod.clone())).await?;
        request(&agent)
            .await
            .map_err(|error| OciError::Agent(step, error))
    })
}

/// Prints JSON for people, as runc does.
///
/// # Errors
/// Nobody takes it.
pub fn print(value: &impl serde::Serialize) -> Result<(), OciError> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)
        .map_err(io::Error::from)
        .and_then(|()| writeln!(out))
        .map_err(OciError::host("print"))
}

/// `start`.
///
/// # Errors
/// It is not a created container, or its program can't be executed.
pub fn start(context: &Context, id: &str) -> Result<(), OciError> {
    let id = store::parse_id(id)?;
    let held = Held::of(&context.root, &id)?;
    let mut record = held.record()?;
    match record.status() {
        Status::Created => {}
        Status::Running | Status::Paused => return Err(OciError::AlreadyRunning),
        Status::Creating | Status::Stopped => return Err(OciError::StartStopped),
    }
    // What its engine has attached since `create` is there when the program begins.
    network::follower::settle(&PodDir::at(record.pod.clone()))?;
    let started = ask(&record, "start the container", async |agent| {
        agent.start(&id).await
    });
    started.map_err(|error| about_program(error, &held))?;
    record.phase = Phase::Running;
    held.write(&record)?;
    context.note(|| format!("container {id}: started"));
    let hooks: HostHooks = serde_json::from_value(record.hooks.clone()).unwrap_or_default();
    hooks.after_start(&record.hook_state(Status::Running))
}

/// A program that is not there is told in the words that engines look for.
fn about_program(error: OciError, held: &Held) -> OciError {
    let OciError::Agent(step, error) = error else {
        return error;
    };
    let process = std::fs::read(held.dir.join(store::PROCESS)).unwrap_or_default();
    let process: serde_json::Value = serde_json::from_slice(&process).unwrap_or_default();
    let program = process["args"][0].as_str().unwrap_or_default();
    OciError::of_program(step, error, program)
}

/// `state`.
///
/// # Errors
/// There is no such container.
pub fn state(context: &Context, id: &str) -> Result<(), OciError> {
    let record = store::look_up(&context.root, id)?;
    print(&record.state(record.status()))
}

/// `kill`.
///
/// # Errors
/// It has ended, or there is no such signal.
pub fn kill(context: &Context, args: &KillArgs) -> Result<(), OciError> {
    let record = store::look_up(&context.root, &args.id)?;
    let number = signal::parse(&args.signal)?;
    match record.status() {
        // Every process of one that has none.
        Status::Stopped if args.all => return Ok(()),
        Status::Stopped => return Err(OciError::NotRunning),
        _ => {}
    }
    let id = store::parse_id(&args.id)?;
    let killed = ask(&record, "signal the container", async |agent| {
        agent.kill(&id, number, args.all).await
    });
    match killed {
        Err(_) if number == Signal::KILL.as_raw().cast_unsigned() => kill_keeper(&record),
        Err(_) if record.status() == Status::Stopped => Err(OciError::NotRunning),
        result => result,
    }
}

/// What the guest does not do for us: a container ends with its keeper.
fn kill_keeper(record: &Record) -> Result<(), OciError> {
    let keeper = record.keeper.filter(super::process::ProcessRef::is_alive);
    let keeper = keeper.ok_or(OciError::NotRunning)?;
    keeper
        .signal(Signal::KILL)
        .map_err(OciError::host("kill the container's keeper"))
}

/// Kills a container and waits for its end.
///
/// # Errors
/// It does not end.
pub fn end(record: &Record, id: &ContainerId) -> Result<(), OciError> {
    let Some(keeper) = record.keeper else {
        return Ok(());
    };
    if keeper.is_alive() {
        let kill = Signal::KILL.as_raw().cast_unsigned();
        let _ = ask(record, "kill the container", async |agent| {
            agent.kill(id, kill, true).await
        });
    }
    if keeper.wait_for_end(PATIENCE) {
        return Ok(());
    }
    kill_keeper(record)?;
    match keeper.wait_for_end(PATIENCE) {
        true => Ok(()),
        false => Err(OciError::Refused("container init still running".into())),
    }
}

/// A killed container may take so long to be gone; then its keeper is killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// `pause`.
///
/// # Errors
/// It does not run.
pub fn pause(context: &Context, id: &str) -> Result<(), OciError> {
    let (held, mut record, id) = hold(context, id)?;
    if record.status() != Status::Running {
        return Err(OciError::NotRunning);
    }
    ask(&record, "pause the container", async |agent| {
        agent.pause(&id).await
    })?;
    record.phase = Phase::Paused;
    held.write(&record)
}

/// `resume`.
///
/// # Errors
/// It was not paused.
pub fn resume(context: &Context, id: &str) -> Result<(), OciError> {
    let (held, mut record, id) = hold(context, id)?;
    if record.status() != Status::Paused {
        return Err(OciError::NotPaused);
    }
    ask(&record, "resume the container", async |agent| {
        agent.resume(&id).await
    })?;
    record.phase = Phase::Running;
    held.write(&record)
}

fn hold(context: &Context, id: &str) -> Result<(Held, Record, ContainerId), OciError> {
    let id = store::parse_id(id)?;
    let held = Held::of(&context.root, &id)?;
    let record = held.record()?;
    Ok((held, record, id))
}
