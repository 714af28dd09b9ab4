//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{
    oci::args::{BundleArgs, Globals, OciVerb, StartArgs},
    pod::{
        ContainerId,
        options::{CpuLimit, Disk, MemoryLimit, Size, Volume},
    },
};

/// In runc's words, which engines read.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.2.0");

/// Containers, each in a virtual machine of its own.
#[derive(Debug, Parser)]
#[command(name = "vmbox", version = VERSION)]
pub struct Cli {
    /// What an engine says before the verb.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a container in a microVM of its own
    #[command(
        override_usage = "vmbox run [OPTIONS] IMAGE [COMMAND]...\n       vmbox run [--bundle DIR] ID"
    )]
    Run(Box<RunArgs>),
    /// runc's
    #[command(flatten)]
    Oci(OciVerb),
    /// Tell whether this machine can run guests and, if not, why and what to do
    Check,
    /// Remove what crashed pods have left behind, and layers of images that no container uses
    Gc,
    /// Remove the writable layer of a container that was run without --rm
    Rm {
        /// The container's name
        name: ContainerId,
    },
    #[command(hide = true)]
    Warden {
        /// The pod's directory.
        dir: PathBuf,
        /// A terminal to restore.
        #[arg(long)]
        terminal: Option<PathBuf>,
    },
}

/// `vmbox run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Run the OCI bundle in DIR, as runc does
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// Keep standard input attached
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Remove the container's writable layer when it exits
    #[arg(long)]
    pub rm: bool,
    /// Name of the container (default: random)
    #[arg(long)]
    pub name: Option<ContainerId>,
    /// Join the running pod of the container POD: one VM for both
    #[arg(long)]
    pub pod: Option<ContainerId>,
    /// Memory limit of the container; sizes the VM too
    #[arg(short, long, value_name = "SIZE")]
    pub memory: Option<MemoryLimit>,
    /// CPU limit of the container; the VM has as many vCPUs, rounded up
    #[arg(long, value_name = "N")]
    pub cpus: Option<CpuLimit>,
    /// Most processes and threads in the container
    #[arg(long, value_name = "N")]
    pub pids_limit: Option<u32>,
    /// Show a file or directory of the host in the container
    #[arg(short, long = "volume", value_name = "SRC:DST[:ro]")]
    pub volumes: Vec<Volume>,
    /// Give the container a raw disk image as /dev/vda, /dev/vdb, …
    #[arg(long = "disk", value_name = "FILE[:ro]")]
    pub disks: Vec<Disk>,
    /// Set an environment variable (K alone: as it is here)
    #[arg(short, long = "env", value_name = "K=V")]
    pub env: Vec<String>,
    /// Working directory in the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, and group, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Host name of the container (default: its name)
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// The root file system refuses writes
    #[arg(long)]
    pub read_only: bool,
    /// Add a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_add: Vec<String>,
    /// Drop a capability, or ALL
    #[arg(long, value_name = "CAP")]
    pub cap_drop: Vec<String>,
    /// Map files through a window of this size instead of copying them
    #[arg(long, value_name = "SIZE")]
    pub dax_window: Option<Size>,
    /// Give the container the interfaces of a network namespace, by its path or its name in /run/netns
    #[arg(long, value_name = "NETNS")]
    pub network: Option<PathBuf>,
    /// Another guest kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Another guest image
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Print on standard error when each phase was over
    #[arg(long)]
    pub timing: bool,
    /// With a bundle: don't wait for the container
    #[arg(short, long)]
    pub detach: bool,
    /// With a bundle: leave the container to be deleted
    #[arg(long)]
    pub keep: bool,
    #[command(flatten)]
    pub start: StartArgs,
    /// A test's hook: the agent crashes when we get this signal.
    #[arg(long, hide = true, value_name = "SIGNAL", value_parser = signal_number)]
    pub debug_crash_agent_on: Option<u32>,
    /// oci:DIR[:TAG], a docker or OCI archive, or dir:DIR; with --bundle, the container's name
    pub image: String,
    /// What to run instead of the image's command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

fn signal_number(name: &str) -> Result<u32, String> {
    match name {
        "SIGUSR1" => Ok(10),
        "SIGUSR2" => Ok(12),
        _ => Err("only SIGUSR1 and SIGUSR2 can be used".into()),
    }
}

/// The two commands that `vmbox run` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `vmbox run [--bundle DIR] ID`.
    Bundle,
    /// `vmbox run IMAGE [CMD…]`.
    Image,
}

/// What a command line that can't be used should say: clap's text in one line.
pub fn complaint(error: &clap::Error) -> String {
    let text = error.to_string();
    let first: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    first.join(" ").trim_start_matches("error: ").to_owned()
}

impl RunArgs {
    /// As runc's `run`, if nothing was asked for that only `vmbox run` has.
    pub fn as_runc(&self) -> Option<BundleArgs> {
        let ours = self.rm
            || self.timing
            || self.pod.is_some()
            || self.kernel.is_some()
            || self.initrd.is_some()
            || self.dax_window.is_some()
            || self.debug_crash_agent_on.is_some()
            || !self.disks.is_empty();
        (!ours).then(|| BundleArgs {
            bundle: self.bundle.clone().unwrap_or_else(|| ".".into()),
            start: self.start.clone(),
        })
    }

    /// Whether something was asked for that only runc's `run` has.
    pub fn wants_runc(&self) -> bool {
        self.detach
            || self.keep
            || self.start.pid_file.is_some()
            || self.start.console_socket.is_some()
    }

    /// Which of the two: a bundle if one is named, or if a lone word that is no image stands where a `config.json` is.
    pub fn form(&self, is_file: impl Fn(&str) -> bool) -> Form {
        let names_an_image = ["oci:", "dir:", "docker-archive:", "oci-archive:"]
            .iter()
            .any(|scheme| self.image.starts_with(scheme))
            || is_file(&self.image);
        if self.bundle.is_some() {
            Form::Bundle
        } else if names_an_image || !self.command.is_empty() || !is_file("config.json") {
            Form::Image
        } else {
            Form::Bundle
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> RunArgs {
        let words = ["vmbox", "run"].iter().chain(words);
        match Cli::try_parse_from(words).unwrap().verb {
            Verb::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_commands_flags_are_the_commands() {
        let run = parse(&[
            "-it", "--rm", "-e", "A=1", "oci:x", "sh", "-c", "exit 3", "--rm",
        ]);
        assert!(run.interactive && run.tty && run.rm);
        assert_eq!(run.image, "oci:x");
        assert_eq!(run.command, ["sh", "-c", "exit 3", "--rm"]);
    }

    #[test]
    fn forms_are_told_apart() {
        let bundle_here = |name: &str| name == "config.json";
        assert_eq!(
            parse(&["--bundle", "b", "web"]).form(|_| false),
            Form::Bundle
        );
        assert_eq!(parse(&["web"]).form(bundle_here), Form::Bundle);
        assert_eq!(parse(&["web"]).form(|_| false), Form::Image);
        assert_eq!(parse(&["dir:x"]).form(bundle_here), Form::Image);
        assert_eq!(parse(&["web", "sh"]).form(bundle_here), Form::Image);
        assert_eq!(parse(&["web.tar"]).form(|_| true), Form::Image);
    }

    #[test]
    fn complaints_are_one_line_with_the_reason() {
        let error = Cli::try_parse_from(["vmbox", "run", "--memory", "1M", "x"]).unwrap_err();
        let text = complaint(&error);
        assert!(
            text.contains("--memory") && text.contains("32 MiB"),
            "{text}"
        );
        assert!(!text.contains('\n'));
        let error = Cli::try_parse_from(["vmbox", "run", "--nonsense"]).unwrap_err();
        assert!(complaint(&error).contains("--nonsense"));
    }

    #[test]
    fn version_is_in_the_words_that_engines_read() {
        let shown = Cli::try_parse_from(["vmbox", "--version"]).unwrap_err();
        let text = shown.to_string();
        let lines: Vec<_> = text.lines().collect();
        let version = concat!("vmbox version ", env!("CARGO_PKG_VERSION"));
        assert_eq!(lines, [version, "spec: 1.2.0"]);
    }

    #[test]
    fn clap_finds_no_fault_in_itself() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
