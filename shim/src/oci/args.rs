//! runc's command line: global flags, and the verbs with theirs.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::log::Format;

/// Flags before the verb.
#[derive(Debug, Clone, Default, Args)]
pub struct Globals {
    /// Keep the state of containers in DIR
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Append errors to FILE too
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// How lines of the log look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// Say more in the log
    #[arg(long)]
    pub debug: bool,
    /// Have systemd make the container's cgroup: cgroupsPath is slice:prefix:name
    #[arg(long)]
    pub systemd_cgroup: bool,
    /// Only false and auto are possible
    #[arg(long, value_name = "BOOL", default_value = "auto", hide = true)]
    pub rootless: String,
    /// Has no effect: there is no checkpoint and restore
    #[arg(long, value_name = "PATH", hide = true)]
    pub criu: Option<String>,
}

/// runc's verbs.
#[derive(Debug, Subcommand)]
pub enum OciVerb {
    /// Create a container from an OCI bundle; its process waits for `start`
    Create(CreateArgs),
    /// Let the process of a created container run
    Start(IdArgs),
    /// Print the state of a container
    State(IdArgs),
    /// Send a signal to a container's process
    Kill(KillArgs),
    /// Remove a stopped container
    Delete(DeleteArgs),
    /// Run another process in a container
    Exec(Box<ExecArgs>),
    /// Show the processes of a container
    Ps(PsArgs),
    /// Show the containers of this root
    List(ListArgs),
    /// Stop every process of a container where it is
    Pause(IdArgs),
    /// Let the processes of a paused container go on
    Resume(IdArgs),
    /// Change the limits of a container
    Update(Box<UpdateArgs>),
    /// Show what a container uses, and when it runs out of memory
    Events(EventsArgs),
    /// Write a config.json to start from
    Spec(SpecArgs),
    /// Print which parts of the runtime-spec are supported
    Features,
}

/// A container.
#[derive(Debug, Args)]
pub struct IdArgs {
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// What `create` and `run` have in common.
#[derive(Debug, Clone, Default, Args)]
pub struct BundleArgs {
    /// The bundle
    #[arg(
        short,
        long,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub bundle: PathBuf,
    #[command(flatten)]
    pub start: StartArgs,
}

/// How a process is attached.
#[derive(Debug, Clone, Default, Args)]
pub struct StartArgs {
    /// Send the terminal's master to this Unix socket
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Write the process id to FILE
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Accepted; the guest decides how it changes its root
    #[arg(long, hide = true)]
    pub no_pivot: bool,
    /// Accepted; keyrings are the guest's
    #[arg(long, hide = true)]
    pub no_new_keyring: bool,
    /// Descriptors can't be passed into a guest: only 0
    #[arg(long, value_name = "N", default_value_t = 0, hide = true)]
    pub preserve_fds: u32,
}

/// `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    #[command(flatten)]
    pub bundle: BundleArgs,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Every process of the container
    #[arg(short, long)]
    pub all: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Name or number
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// `delete`.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Kill it first, and don't mind if it is not there
    #[arg(short, long)]
    pub force: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// `exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub start: StartArgs,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// Set an environment variable
    #[arg(short, long, value_name = "K=V")]
    pub env: Vec<String>,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// User and group, as numbers
    #[arg(short, long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Further groups
    #[arg(short = 'g', long, value_name = "GID")]
    pub additional_gids: Vec<u32>,
    /// An OCI process object
    #[arg(short, long, value_name = "FILE")]
    pub process: Option<PathBuf>,
    /// Don't wait for it
    #[arg(short, long)]
    pub detach: bool,
    /// SELinux label: a guest has none
    #[arg(long, value_name = "LABEL", hide = true)]
    pub process_label: Option<String>,
    /// AppArmor profile: a guest has none
    #[arg(long, value_name = "PROFILE")]
    pub apparmor: Option<String>,
    /// It can't gain privileges
    #[arg(long)]
    pub no_new_privs: bool,
    /// Add a capability
    #[arg(short, long, value_name = "CAP")]
    pub cap: Vec<String>,
    /// In a cgroup below the container's
    #[arg(long, value_name = "PATH")]
    pub cgroup: Vec<String>,
    /// Though the container is paused
    #[arg(long)]
    pub ignore_paused: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Program and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// How tables are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum TableFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// How to print them
    #[arg(short, long, default_value = "table")]
    pub format: TableFormat,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
    /// Options of ps(1): `-e`, `-ef`, `ax`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// How to print them
    #[arg(short, long, default_value = "table")]
    pub format: TableFormat,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
}

/// `update`: config-linux.md#control-groups.
#[derive(Debug, Default, Args)]
pub struct UpdateArgs {
    /// Read an OCI linux.resources object from FILE, or standard input
    #[arg(short, long, value_name = "FILE|-")]
    pub resources: Option<PathBuf>,
    /// Block IO weight, 10 to 1000
    #[arg(long)]
    pub blkio_weight: Option<u16>,
    /// CPU period in microseconds
    #[arg(long)]
    pub cpu_period: Option<u64>,
    /// CPU quota in microseconds per period
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// CPU time that may be saved up, in microseconds
    #[arg(long)]
    pub cpu_burst: Option<u64>,
    /// Relative CPU weight
    #[arg(long)]
    pub cpu_share: Option<u64>,
    /// 1: idle
    #[arg(long, allow_hyphen_values = true)]
    pub cpu_idle: Option<i64>,
    /// Realtime scheduling: cgroup v2 has none
    #[arg(long, hide = true)]
    pub cpu_rt_period: Option<u64>,
    /// Realtime scheduling: cgroup v2 has none
    #[arg(long, hide = true, allow_hyphen_values = true)]
    pub cpu_rt_runtime: Option<i64>,
    /// CPUs to use
    #[arg(long)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long)]
    pub cpuset_mems: Option<String>,
    /// Memory limit in bytes, or with K, M, G
    #[arg(long, allow_hyphen_values = true)]
    pub memory: Option<String>,
    /// Soft limit
    #[arg(long, allow_hyphen_values = true)]
    pub memory_reservation: Option<String>,
    /// Memory and swap together; -1 for no limit of swap
    #[arg(long, allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Kernel memory: cgroup v2 has no such limit
    #[arg(long, hide = true)]
    pub kernel_memory: Option<String>,
    /// Kernel memory of TCP: cgroup v2 has no such limit
    #[arg(long, hide = true)]
    pub kernel_memory_tcp: Option<String>,
    /// Most processes
    #[arg(long, allow_hyphen_values = true)]
    pub pids_limit: Option<i64>,
    /// Intel RDT is the host's
    #[arg(long, hide = true)]
    pub l3_cache_schema: Option<String>,
    /// Intel RDT is the host's
    #[arg(long, hide = true)]
    pub mem_bw_schema: Option<String>,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// How often
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    pub interval: std::time::Duration,
    /// Once, and without events
    #[arg(long)]
    pub stats: bool,
    /// The container's id
    #[arg(value_name = "CONTAINER")]
    pub id: String,
}

fn interval(text: &str) -> Result<std::time::Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match duration.is_zero() {
        true => Err("duration interval must be greater than 0".into()),
        false => Ok(duration),
    }
}

/// `spec`.
#[derive(Debug, Args)]
pub struct SpecArgs {
    /// Where to write it
    #[arg(short, long, value_name = "DIR")]
    pub bundle: Option<PathBuf>,
    /// For users without privileges: not possible
    #[arg(long)]
    pub rootless: bool,
}
