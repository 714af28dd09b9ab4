//! `vmbox` as an OCI runtime: runc's verbs, flags, messages and exit codes, without a daemon.
//!
//! ```text
//! <root>/<id>/          state.json (for everybody), process.json, exit: a container, from create to delete
//! <run>/pod-<random>/   its pod: journal, lifeline, members/, share/, sockets of the monitor
//!
//! create ──► keeper (the container's pid on the host) ── holds ──► lifeline ──► vmbox-vmm
//! start, kill, exec, … ── vsock ──► agent
//! ```

pub mod args;
mod cgroup;
mod claims;
mod create;
mod delete;
mod error;
mod events;
mod exec;
mod features;
mod hooks;
mod keeper;
mod kernel;
mod list;
mod log;
mod occupied;
mod pods;
mod process;
mod ps;
mod pump;
mod record;
mod run;
mod sandbox;
mod seat;
mod signal;
mod spec;
mod store;
mod systemd;
mod update;
mod verbs;
mod view;
mod vm;
mod wait;

use std::path::PathBuf;

pub use delete::{abandoned, clear};
pub use error::OciError;
pub use keeper::{VERB as KEEPER, main as keeper};
pub use pods::has_containers;
pub use run::RunOptions;

use self::{
    args::{BundleArgs, Globals, OciVerb},
    cgroup::Driver,
    log::{Level, Log},
};
use crate::user::{one_line, run_dir};

/// runc knows no other code for failures of its own, but one.
const FAILED: u8 = 1;

/// What every verb needs to know.
#[derive(Debug)]
pub struct Context {
    /// Where containers are.
    root: PathBuf,
    /// Where pods are.
    run: PathBuf,
    /// Who makes containers' cgroups.
    cgroups: Driver,
    /// Whether steps are told.
    debug: bool,
    log: Log,
}

impl Context {
    fn new(globals: &Globals) -> Result<Self, OciError> {
        let log = Log::open(globals.log.as_deref(), globals.log_format)
            .map_err(OciError::host("open the log"))?;
        let run = run_dir();
        let root = globals.root.as_deref().map(create::absolute);
        Ok(Self {
            root: root.unwrap_or_else(|| run.clone()),
            run,
            cgroups: match globals.systemd_cgroup {
                true => Driver::Systemd,
                false => Driver::Cgroupfs,
            },
            debug: globals.debug,
            log,
        })
    }

    fn warn(&self, message: &str) {
        self.log.tell(Level::Warning, message);
    }

    /// Tells a step, if anybody wants to know.
    fn note(&self, step: impl FnOnce() -> String) {
        if self.debug {
            self.log.tell(Level::Debug, &step());
        }
    }
}

/// Does what a verb asks; the exit code of the process.
pub fn execute(globals: &Globals, verb: OciVerb) -> u8 {
    with_context(globals, |context| carry_out(context, verb))
}

fn with_context(globals: &Globals, work: impl FnOnce(&Context) -> Result<u8, OciError>) -> u8 {
    kernel::keep_descriptors_to_ourselves();
    let context = match Context::new(globals) {
        Ok(context) => context,
        Err(error) => {
            crate::user::complain(&one_line(&error));
            return FAILED;
        }
    };
    context.note(|| {
        format!(
            "containers in {}, pods in {}",
            context.root.display(),
            context.run.display()
        )
    });
    let done = refuse(globals).and_then(|()| work(&context));
    done.unwrap_or_else(|error| {
        context.log.tell(Level::Error, &one_line(&error));
        FAILED
    })
}

/// Global flags that ask for what can't be.
fn refuse(globals: &Globals) -> Result<(), OciError> {
    match globals.rootless.as_str() {
        "auto" | "false" | "" => Ok(()),
        _ => Err(OciError::Refused(
            "--rootless: vmbox needs root on the host; a container's user namespace is the guest's"
                .into(),
        )),
    }
}

/// `run` of a bundle; the exit code of the process.
pub fn run(globals: &Globals, id: &str, args: &BundleArgs, options: RunOptions) -> u8 {
    with_context(globals, |context| run::run(context, id, args, options))
}

fn carry_out(context: &Context, verb: OciVerb) -> Result<u8, OciError> {
    match verb {
        OciVerb::Create(args) => create::create(context, &args.id, &args.bundle, true).map(drop),
        OciVerb::Exec(args) => return exec::exec(context, &args),
        OciVerb::Ps(args) => ps::ps(context, &args),
        OciVerb::Update(args) => update::update(context, &args),
        OciVerb::Events(args) => events::events(context, &args),
        OciVerb::Spec(args) => spec::spec(&args),
        OciVerb::Features => verbs::print(&features::features()),
        OciVerb::Start(args) => verbs::start(context, &args.id),
        OciVerb::State(args) => verbs::state(context, &args.id),
        OciVerb::Kill(args) => verbs::kill(context, &args),
        OciVerb::Delete(args) => delete::delete(context, &args.id, args.force),
        OciVerb::Pause(args) => verbs::pause(context, &args.id),
        OciVerb::Resume(args) => verbs::resume(context, &args.id),
        OciVerb::List(args) => list::list(context, &args),
    }?;
    Ok(0)
}
