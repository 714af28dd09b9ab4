//! `vmbox-vmm`: reads a VmConfig, boots it, lives until the guest ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::process::ExitCode;

use vmbox_config::{ExitReason, VmConfig};
use vmbox_vmm::report::monotonic_ns;

const USAGE: &str = "usage: vmbox-vmm --config FILE | --config-fd N | --probe | --version";

enum Command {
    Run(ConfigSource),
    Probe,
    Version,
}

enum ConfigSource {
    File(PathBuf),
    Descriptor(RawFd),
}

fn main() -> ExitCode {
    let started_ns = monotonic_ns();
    vmbox_vmm::tune_allocator();
    vmbox_vmm::reserve_descriptors();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        // It would say on stderr, and panic there, that stderr is gone.
        .log_internal_errors(false)
        .init();
    match parse_arguments() {
        Ok(Command::Version) => {
            println!("vmbox-vmm {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Command::Probe) => probe(),
        Ok(Command::Run(source)) => match read_config(source) {
            Ok(config) => ExitCode::from(vmbox_vmm::run::run(&config, started_ns)),
            Err(error) => bad_config(&error),
        },
        Err(error) => bad_config(&error),
    }
}

fn probe() -> ExitCode {
    match vmbox_vmm::probe::probe() {
        Ok(()) => {
            println!("ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{error}");
            ExitCode::from(ExitReason::NoKvm.status())
        }
    }
}

fn bad_config(error: &anyhow::Error) -> ExitCode {
    // Not eprintln, which panics if nobody reads.
    let _ = writeln!(std::io::stderr(), "vmbox-vmm: {error:#}");
    ExitCode::from(ExitReason::BadConfig.status())
}

fn parse_arguments() -> anyhow::Result<Command> {
    let mut arguments = std::env::args_os().skip(1);
    let usage = || anyhow::anyhow!(USAGE);
    let option = arguments.next().ok_or_else(usage)?;
    let command = match option.to_str() {
        Some("--version") => Command::Version,
        Some("--probe") => Command::Probe,
        Some("--config") => Command::Run(ConfigSource::File(
            arguments.next().ok_or_else(usage)?.into(),
        )),
        Some("--config-fd") => {
            let number = arguments
                .next()
                .and_then(|n| n.to_str()?.parse().ok())
                .ok_or_else(usage)?;
            Command::Run(ConfigSource::Descriptor(number))
        }
        _ => return Err(usage()),
    };
    match arguments.next() {
        None => Ok(command),
        Some(_) => Err(usage()),
    }
}

fn read_config(source: ConfigSource) -> anyhow::Result<VmConfig> {
    use anyhow::Context;
    /// Far more than any VM needs; bounds what a wrong file can cost.
    const MAX_BYTES: u64 = 1 << 20;
    let (file, name) = match source {
        ConfigSource::File(path) => {
            let file =
                File::open(&path).with_context(|| format!("configuration {}", path.display()))?;
            (file, path.display().to_string())
        }
        ConfigSource::Descriptor(fd) => {
            let name = format!("descriptor {fd}");
            let fd = vmbox_vmm::adopt(fd).with_context(|| format!("configuration: {name}"))?;
            (File::from(fd), name)
        }
    };
    let mut text = String::new();
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .with_context(|| format!("configuration: read {name}"))?;
    serde_json::from_str(&text).with_context(|| format!("configuration {name}"))
}
