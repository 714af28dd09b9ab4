//! Running units in the virtual host, which is booted anew should one take it down.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use std::{fs, mem};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::record::Record;
use super::runtime::Runtime;
use super::suite::Unit;
use crate::arch::Arch;
use crate::debian;
use crate::debian::key;
use crate::host::{Host, Model};
use crate::streams::Streams;
use crate::test_host::{self, TestHost};
use crate::workspace::{Workspace, say};

/// The exit status of a unit in which the host died: one to run again.
pub const HOST_DIED: i32 = 255;

/// The virtual host and what its units are made of.
pub struct Session<'a> {
    workspace: &'a Workspace,
    suites: &'a Path,
    script: PathBuf,
    /// Whether the product is to be placed in it.
    ours: bool,
    /// Booted when the first unit wants it.
    host: Option<TestHost>,
    /// Of suites, script and host.
    stamp: String,
    /// Of the product.
    product: String,
}

impl<'a> Session<'a> {
    /// One in which nothing is booted yet.
    pub fn new(workspace: &'a Workspace, suites: &'a Path, runtimes: &[Runtime]) -> Result<Self> {
        let script = workspace.root.join("tests/conformance/unit");
        let text = fs::read_to_string(&script).context("read tests/conformance/unit")?;
        let image = debian::host_image(workspace, Arch::native())?.dir;
        let ours = runtimes.contains(&Runtime::Vmbox);
        let stamp = key(&[&suites.to_string_lossy(), &image.to_string_lossy(), &text]);
        let product = if ours {
            product_key(&workspace.product(Arch::native()))?
        } else {
            String::new()
        };
        Ok(Self {
            workspace,
            suites,
            script,
            ours,
            host: None,
            stamp,
            product,
        })
    }

    /// What a record of this runtime must carry to count.
    pub fn stamp(&self, runtime: Runtime) -> String {
        match runtime {
            Runtime::Runc | Runtime::Crun => self.stamp.clone(),
            Runtime::Vmbox => format!("{} {}", self.stamp, self.product),
        }
    }

    /// Runs one unit; an error is one of ours, not of the unit.
    pub fn run(&mut self, runtime: Runtime, unit: &Unit) -> Result<Record> {
        let stamp = self.stamp(runtime);
        let argv = self.command(runtime, unit);
        let host = match self.host.take() {
            Some(host) => host,
            None => self.boot()?,
        };
        let (output, complaints) = (Collected::default(), Collected::default());
        let mut streams = Streams {
            stdin: false,
            stdout: Box::new(output.clone()),
            stderr: Box::new(complaints.clone()),
        };
        let began = Instant::now();
        let code = match host.run(&argv, &[], &mut streams) {
            Ok(code) => {
                self.host = Some(host);
                code
            }
            Err(error) => {
                say(&format!("{}: {error:#}", unit.key()));
                HOST_DIED
            }
        };
        let seconds = began.elapsed().as_secs();
        let name = runtime.name();
        say(&format!(
            "{name:6} {}: exit status {code} after {seconds} s",
            unit.key()
        ));
        Ok(Record {
            stamp,
            code,
            seconds,
            output: output.text(),
            complaints: complaints.text(),
        })
    }

    fn command(&self, runtime: Runtime, unit: &Unit) -> Vec<String> {
        vec![
            self.script.display().to_string(),
            self.suites.display().to_string(),
            unit.suite.name().to_owned(),
            unit.name.clone(),
            runtime.program().to_owned(),
            unit.limit_s().to_string(),
        ]
    }

    /// Never this machine itself: a runtime that errs rearranges mounts and cgroups.
    fn boot(&self) -> Result<TestHost> {
        let model = Model::fast(Arch::native());
        if self.ours {
            return test_host::emulated(self.workspace, model);
        }
        Ok(TestHost::Emulated(Host::up(self.workspace, model, false)?))
    }
}

/// Names the product by its content.
fn product_key(dir: &Path) -> Result<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        files.push(entry?.path());
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(fs::read(&file).with_context(|| format!("read {}", file.display()))?);
    }
    let digest = hash.finalize();
    Ok(digest
        .iter()
        .take(12)
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Keeps what is written to it, for all of its copies.
#[derive(Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    fn text(&self) -> String {
        let mut bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&mem::take(&mut *bytes)).into_owned()
    }
}

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
