//! Where tests run: on this machine's KVM if an ordinary guest works there, else in the virtual host.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::host::{Flavour, Host, Output};
use crate::workspace::{Workspace, say};

/// Copies the product to memory: programs start slowly from a share. The folder is named by content,
/// because the host may still be running an older build for somebody else.
const PLACE: &str = r#"
set -eu
from=$1
key=$(cat "$from"/vmbox "$from"/vmbox-vmm "$from"/vmlinux "$from"/guest.cpio | sha256sum | cut -c1-16)
to=/usr/lib/vmbox-$key
if [ ! -d "$to" ]; then
    new=$(mktemp -d /usr/lib/vmbox-new.XXXXXX)
    cp "$from"/vmbox "$from"/vmbox-vmm "$from"/vmlinux "$from"/guest.cpio "$new"/
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
pub fn choose(workspace: &Workspace) -> Result<TestHost> {
    let product = workspace.product(Arch::native());
    let native = match std::env::var("VMBOX_TEST_HOST").as_deref() {
        Ok("native") => {
            say("tests run on this machine's KVM, as VMBOX_TEST_HOST asks");
            true
        }
        Ok("emulated") => {
            say("tests run in the virtual KVM host, as VMBOX_TEST_HOST asks");
            false
        }
        Ok(other) => bail!("VMBOX_TEST_HOST={other}: it is `emulated` or `native`"),
        Err(_) => probe(&product)?,
    };
    if native {
        return Ok(TestHost::Native { product });
    }
    emulated(workspace, Flavour::Fast)
}

/// The virtual host with the product in it.
pub fn emulated(workspace: &Workspace, flavour: Flavour) -> Result<TestHost> {
    let host = Host::up(workspace, flavour, false)?;
    let source = workspace.product(Arch::native()).display().to_string();
    let place = ["sh", "-c", PLACE, "place", &source].map(str::to_owned);
    if host.run(&place, &[], Output::Shown)? != 0 {
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

    /// Runs a command as root there, its output shown; returns its exit code.
    pub fn run(&self, argv: &[String], environment: &[(&str, String)]) -> Result<i32> {
        match self {
            Self::Emulated(host) => host.run(argv, environment, Output::Shown),
            Self::Native { .. } => {
                let variables = environment
                    .iter()
                    .map(|(name, value)| format!("{name}={value}"));
                let mut command = crate::shell::as_root("env");
                let status = command
                    .args(variables)
                    .args(argv)
                    .stdin(Stdio::null())
                    .status()?;
                Ok(status.code().unwrap_or(255))
            }
        }
    }
}
