//! Where tests run: on this machine's KVM if an ordinary guest works there, else in the virtual host.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::host::{Host, Model};
use crate::streams::Streams;
use crate::workspace::{Workspace, say};

/// Copies the product to memory: programs start slowly from a share. The folder is named by content,
/// because the host may still be running an older build for somebody else.
const PLACE: &str = r#"
set -eu
from=$1
key=$(cat "$from"/* | sha256sum | cut -c1-16)
to=/usr/lib/vmbox-$key
if [ ! -d "$to" ]; then
    new=$(mktemp -d /usr/lib/vmbox-new.XXXXXX)
    cp "$from"/* "$new"/
    chmod 755 "$new"
    mv -T "$new" "$to" 2>/dev/null || rm -rf "$new"
fi
ln -sfn "$to" /usr/lib/vmbox
ln -sf /usr/lib/vmbox/vmbox /usr/local/bin/vmbox
"#;

/// A machine whose KVM runs guests, with the product on it.
#[derive(Debug)]
pub enum TestHost {
    /// This machine; the product is where it was built.
    Native {
        /// Holds `vmbox` and what it needs.
        product: PathBuf,
    },
    /// The virtual KVM host; the product is in its memory.
    Emulated(Host),
}

/// What `VMBOX_TEST_HOST` asks for, or what a probe guest says.
pub fn choose(workspace: &Workspace, arch: Arch) -> Result<TestHost> {
    let product = workspace.product(arch);
    let native = match std::env::var("VMBOX_TEST_HOST").as_deref() {
        Ok("native") if !arch.is_native() => {
            bail!("VMBOX_TEST_HOST=native: this machine runs no {arch} guests")
        }
        Ok("native") => {
            say("tests run on this machine's KVM, as VMBOX_TEST_HOST asks");
            true
        }
        Ok("emulated") => {
            say("tests run in the virtual KVM host, as VMBOX_TEST_HOST asks");
            false
        }
        Ok(other) => bail!("VMBOX_TEST_HOST={other}: it is `emulated` or `native`"),
        Err(_) if !arch.is_native() => {
            say(&format!("{arch} tests run in the virtual {arch} KVM host"));
            false
        }
        Err(_) => probe(&product)?,
    };
    if native {
        return Ok(TestHost::Native { product });
    }
    emulated(workspace, Model::fast(arch))
}

/// The virtual host with the product in it.
pub fn emulated(workspace: &Workspace, model: Model) -> Result<TestHost> {
    let host = Host::up(workspace, model, false)?;
    let source = workspace.product(model.arch).display().to_string();
    let place = ["sh", "-c", PLACE, "place", &source].map(str::to_owned);
    if host.run(&place, &[], &mut Streams::shown())? != 0 {
        bail!("the product could not be copied into the virtual host");
    }
    Ok(TestHost::Emulated(host))
}

/// Runs the monitor's probe guest: flags alone don't tell whether KVM runs ordinary guests.
fn probe(product: &Path) -> Result<bool> {
    let output = Command::new(product.join("vmbox-vmm"))
        .arg("--probe")
        .stdin(Stdio::null())
        .output()
        .context("run vmbox-vmm --probe")?;
    let words = [output.stdout, output.stderr].concat();
    let words = String::from_utf8_lossy(&words);
    let reason = words
        .trim()
        .lines()
        .next()
        .unwrap_or("no reason given")
        .to_owned();
    if output.status.success() {
        say(&format!("tests run on this machine's KVM: {reason}"));
    } else {
        say(&format!(
            "tests run in the virtual KVM host, because here: {reason}"
        ));
    }
    Ok(output.status.success())
}

impl TestHost {
    /// Where `vmbox` is, as the host's programs see it.
    pub fn product(&self) -> PathBuf {
        match self {
            Self::Native { product } => product.clone(),
            Self::Emulated(_) => "/usr/lib/vmbox".into(),
        }
    }

    /// Runs a command as root there, with no input; returns its exit code.
    pub fn run(
        &self,
        argv: &[String],
        environment: &[(&str, String)],
        streams: &mut Streams,
    ) -> Result<i32> {
        match self {
            Self::Emulated(host) => host.run(argv, environment, streams),
            Self::Native { .. } => run_here(argv, environment, streams),
        }
    }
}

fn run_here(argv: &[String], environment: &[(&str, String)], streams: &mut Streams) -> Result<i32> {
    let variables = environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    let mut command = crate::shell::as_root("env");
    command.args(variables).args(argv).stdin(Stdio::null());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        scope.spawn(|| pass(out, &mut streams.stdout));
        pass(err, &mut streams.stderr);
    });
    Ok(child.wait()?.code().unwrap_or(255))
}

/// Passes a pipe on as it comes; if nobody takes it any more, the rest is read and dropped.
fn pass(from: Option<impl Read>, to: &mut impl Write) {
    let mut buffer = vec![0; 64 << 10];
    let Some(mut from) = from else { return };
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let _ = to.write_all(&buffer[..length]).and_then(|()| to.flush());
    }
}
