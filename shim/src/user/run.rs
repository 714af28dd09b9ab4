//! `vmbox run`: one container from the command line to its exit code.
//!
//! ```text
//! plan ─► warden ─► directory, journal ─► mount namespace ─► VM boots ┐
//!                                          root file system, volumes ─┴─► agent ─► container ─► end of VM ─► warden
//! ```

use std::{io, os::fd::OwnedFd, path::Path, sync::Arc};

use tokio::io::{Interest, unix::AsyncFd};

use super::{
    args::{Form, RunArgs},
    complain, one_line,
    plan::{Plan, PlanError, foreign_to_bundles, plan, read_spec},
    prepare::{Preparing, keep, reserve},
    run_dir,
    signals::Signals,
    timing::Timing,
    warden::Warden,
};
use crate::{
    guest::{Agent, AgentError, Exit},
    journal::{self, Journal, Record},
    network::{self, Ends, NetworkError, PodNetwork, Wanted},
    oci::{
        self, RunOptions,
        args::{BundleArgs, Globals},
    },
    pod::{
        ContainerId,
        container::{self, ContainerError, Launch},
        design::{self, DesignError, VmPlaces},
        owner::{Pod, PodError, Ready},
        place::{self, PlaceError, PodDir},
        rootfs::PrepareError,
        spec::SpecError,
    },
};

/// Exit code of `docker run` for its own failures. runc has only 1, whatever failed; engines read its message instead.
const RUNTIME_FAILED: u8 = 125;
const BUNDLE_FAILED: u8 = 1;
/// As if killed: what happens to a container whose pod ends.
const KILLED: u8 = 137;

#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{0}")]
    Host(&'static str, #[source] io::Error),
    #[error("the name {0} is taken: a container of that name runs (or crashed: then `vmbox gc`)")]
    NameTaken(ContainerId),
    #[error("no pod {0} is running here")]
    NoPod(ContainerId),
    #[error("the path {0} is too long for sockets: set VMBOX_RUN to a shorter one")]
    PathTooLong(std::path::PathBuf),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Design(#[from] DesignError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Pod(#[from] PodError),
    #[error("the pod {0} has ended, and this container with it")]
    PodEnded(ContainerId),
}

/// Runs the verb; the exit code.
pub fn run(globals: &Globals, args: RunArgs) -> u8 {
    let timing = Arc::new(Timing::start());
    let wants_timing = args.timing;
    let form = args.form(|path| Path::new(path).is_file());
    let foreign = foreign_to_bundles(&args);
    if let (Form::Bundle, true, true, Some(bundle)) = (
        form,
        foreign.is_empty(),
        args.command.is_empty(),
        // A network that is named is ours to carry, unless nobody of us stays.
        args.as_runc()
            .filter(|bundle| args.wants_runc() || !names_a_network(bundle)),
    ) {
        let options = RunOptions {
            detach: args.detach,
            keep: args.keep,
        };
        return oci::run(globals, &args.image, &bundle, options);
    }
    let result = carry_out(args, form, &timing);
    if wants_timing {
        timing.report(&mut io::stderr());
    }
    match result {
        Ok(exit) => exit.status,
        Err(error) => {
            complain(&one_line(&error));
            exit_code(&error, form)
        }
    }
}

/// Its interfaces are carried into the guest by a process that stays, which runc's verbs have none of.
fn names_a_network(bundle: &BundleArgs) -> bool {
    let spec = read_spec(&bundle.bundle);
    spec.is_ok_and(|spec| matches!(network::wanted(&spec), Wanted::At(_)))
}

fn exit_code(error: &RunError, form: Form) -> u8 {
    match error {
        RunError::Pod(PodError::Container(error @ ContainerError::Interrupted(_))) => {
            container::exit_code_of_refusal(error)
        }
        RunError::PodEnded(_) => KILLED,
        _ if form == Form::Bundle => BUNDLE_FAILED,
        RunError::Pod(PodError::Container(error)) => container::exit_code_of_refusal(error),
        _ => RUNTIME_FAILED,
    }
}

fn carry_out(args: RunArgs, form: Form, timing: &Arc<Timing>) -> Result<Exit, RunError> {
    let stdin_is_terminal = rustix::termios::isatty(rustix::stdio::stdin());
    let plan = Arc::new(plan(args, form, stdin_is_terminal)?);
    let dir = PodDir::of(&run_dir(), &plan.id);
    if !container::fits_a_socket(dir.path()) {
        return Err(RunError::PathTooLong(dir.path().to_owned()));
    }
    let mut network = plan.network.as_deref().map(PodNetwork::open).transpose()?;
    if let Some(network) = &mut network {
        network.set_resolv_conf(plan.resolv_conf());
    }
    let restores_terminal = plan.attachment.terminal && stdin_is_terminal;
    let mut warden = Warden::start(&dir, restores_terminal)
        .map_err(|error| RunError::Host("start the warden", error))?;
    let result = in_own_directory(&plan, &dir, network, &mut warden, timing);
    warden.finish();
    result
}

fn in_own_directory(
    plan: &Arc<Plan>,
    dir: &PodDir,
    network: Option<PodNetwork>,
    warden: &mut Warden,
    timing: &Arc<Timing>,
) -> Result<Exit, RunError> {
    let journal = match Journal::create(dir) {
        Ok(journal) => journal,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(RunError::NameTaken(plan.id.clone()));
        }
        Err(error) => return Err(RunError::Host("make the pod's directory", error)),
    };
    if let Err(error) = warden.owns() {
        // Nobody else would. What can't be removed is left to `gc`.
        let _ = journal::undo(dir);
        return Err(RunError::Host("talk to the warden", error));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| RunError::Host("start the event loop", error))?;
    let result = match &plan.pod {
        None => runtime.block_on(own_pod(plan, dir, network, &journal, timing)),
        Some(pod) => join_pod(&runtime, plan, pod, &journal, timing),
    };
    // Never waits for the thread that reads our standard input.
    runtime.shutdown_background();
    result
}

async fn own_pod(
    plan: &Arc<Plan>,
    dir: &PodDir,
    network: Option<PodNetwork>,
    journal: &Journal,
    timing: &Arc<Timing>,
) -> Result<Exit, RunError> {
    let place = reserve(plan, journal)?;
    place::enter_private_namespace()?;
    let vm = design::vm_config(
        plan.shape,
        &VmPlaces {
            kernel: &plan.assets.kernel,
            image: Some(&plan.assets.image),
            share: &dir.share(),
            vsock: &dir.vsock(),
            control: &dir.control(),
        },
        &plan.disks,
        plan.dax_window_mib,
        if plan.crash_on.is_some() {
            "vmbox.debug"
        } else {
            ""
        },
    );
    let mut pod = Pod::launch(dir, &plan.assets.vmm, vm, journal, timing)?;
    let preparing = Preparing::start(plan, place, dir.share());
    let result = match preparing.unless(pod.ended()).await {
        Ok(spec) => {
            let started = || keep(plan, journal);
            let launch = launch(plan, dir, &spec, &started, journal, timing);
            in_pod(plan, &mut pod, network, &launch).await
        }
        Err(error) => Err(error),
    };
    let result = match result {
        Ok((exit, ready, mut signals)) => {
            pod.shutdown(ready, &mut signals).await;
            Ok(exit)
        }
        Err(error) => {
            pod.kill().await;
            Err(error)
        }
    };
    // The writable layer is at rest before the warden removes it, or leaves it to the user.
    if let Err(error) = place::unmount_below(dir.path()) {
        tracing::warn!(%error, "unmount the pod's share");
    }
    result
}

async fn in_pod(
    plan: &Plan,
    pod: &mut Pod,
    network: Option<PodNetwork>,
    launch: &Launch<'_>,
) -> Result<(Exit, Ready, Signals), RunError> {
    let mut signals =
        Signals::listen().map_err(|error| RunError::Host("listen for signals", error))?;
    let dax = plan.dax_window_mib > 0;
    let ready = pod
        .ready(&plan.hostname, dax, &mut signals, launch.timing)
        .await?;
    let exit = match network {
        None => pod.run(&ready, launch, &mut signals).await?,
        Some(network) => with_network(network, pod, &ready, launch, &mut signals).await?,
    };
    Ok((exit, ready, signals))
}

/// Runs the container with the interfaces of now, and those that come while it runs.
async fn with_network(
    mut network: PodNetwork,
    pod: &Pod,
    ready: &Ready,
    launch: &Launch<'_>,
    signals: &mut Signals,
) -> Result<Exit, RunError> {
    let ends = Ends {
        dir: launch.dir,
        agent: ready.agent(),
        journal: launch.journal,
    };
    // Before the first look: what changes after it must not be missed.
    let watch = network.watch()?;
    network.bring(ends).await?;
    launch.timing.mark("network ready");
    tokio::select! {
        exit = pod.run(ready, launch, signals) => Ok(exit?),
        failed = network.follow(watch, ends) => {
            failed?;
            Err(RunError::Host("watch the network", io::ErrorKind::UnexpectedEof.into()))
        }
    }
}

fn launch<'a>(
    plan: &'a Plan,
    dir: &'a PodDir,
    spec: &'a [u8],
    started: &'a dyn Fn() -> io::Result<()>,
    journal: &'a Journal,
    timing: &'a Arc<Timing>,
) -> Launch<'a> {
    Launch {
        dir,
        id: &plan.id,
        spec,
        attachment: plan.attachment,
        crash_on: plan.crash_on,
        journal,
        started,
        timing,
    }
}

fn join_pod(
    runtime: &tokio::runtime::Runtime,
    plan: &Arc<Plan>,
    pod: &ContainerId,
    journal: &Journal,
    timing: &Arc<Timing>,
) -> Result<Exit, RunError> {
    let dir = PodDir::of(&run_dir(), pod);
    let (monitor, pidfd) =
        journal::watch_monitor(&dir).ok_or_else(|| RunError::NoPod(pod.clone()))?;
    let place = reserve(plan, journal)?;
    let membership = Record::Member {
        pod: dir.path().to_owned(),
        container: plan.id.to_string(),
    };
    journal
        .record(&membership)
        .map_err(|error| RunError::Host("write the journal", error))?;
    place::enter_namespace_of(monitor)?;
    runtime.block_on(async {
        let ended = async {
            wait_for(pidfd).await;
            RunError::PodEnded(pod.clone())
        };
        let spec = Preparing::start(plan, place, dir.share())
            .unless(ended)
            .await?;
        let mut signals =
            Signals::listen().map_err(|error| RunError::Host("listen for signals", error))?;
        let agent = Agent::connect(&dir.agent())
            .await
            .map_err(|_| RunError::NoPod(pod.clone()))?;
        timing.mark("agent ready");
        let started = || keep(plan, journal);
        let launch = launch(plan, &dir, &spec, &started, journal, timing);
        let exit = container::run(&agent, &launch, &mut signals).await;
        exit.map_err(|error| match error {
            ContainerError::Wait(AgentError::Gone)
            | ContainerError::Start(AgentError::Gone)
            | ContainerError::Create(AgentError::Gone) => RunError::PodEnded(pod.clone()),
            error => RunError::Pod(PodError::Container(error)),
        })
    })
}

/// Waits for a process to end.
async fn wait_for(pidfd: OwnedFd) {
    // SAFETY: an OwnedFd keeps its number and stays open for as long as it lives, and the AsyncFd owns it.
    match unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) } {
        Ok(pidfd) => drop(pidfd.readable().await),
        // Without it, the end shows when the agent is called.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::End;

    fn ended() -> RunError {
        PodError::Ended(End {
            reason: None,
            message: "killed".into(),
            guest_log: Vec::new(),
        })
        .into()
    }

    #[test]
    fn failures_have_dockers_code_or_runcs() {
        let failed = || RunError::Host("x", io::ErrorKind::Other.into());
        assert_eq!(exit_code(&failed(), Form::Image), 125);
        assert_eq!(exit_code(&failed(), Form::Bundle), 1);
        assert_eq!(exit_code(&ended(), Form::Image), 125);
        assert_eq!(exit_code(&ended(), Form::Bundle), 1);
    }

    #[test]
    fn a_command_that_is_not_there_has_dockers_code_or_runcs() {
        let missing = || {
            RunError::from(PodError::from(ContainerError::Start(AgentError::Refused {
                code: ttrpc::Code::NOT_FOUND,
                message: String::new(),
            })))
        };
        assert_eq!(exit_code(&missing(), Form::Image), 127);
        assert_eq!(exit_code(&missing(), Form::Bundle), 1);
    }

    #[test]
    fn an_interruption_is_the_signal_in_both_forms() {
        for form in [Form::Image, Form::Bundle] {
            let error = PodError::from(ContainerError::Interrupted(2)).into();
            assert_eq!(exit_code(&error, form), 130);
        }
    }

    #[test]
    fn a_member_ends_with_its_pod() {
        assert_eq!(
            exit_code(&RunError::PodEnded("a".parse().unwrap()), Form::Image),
            137
        );
    }
}
