//! Debian trees in the cache: the virtual host's root, the containers' image, and the suites of others.

mod foreign;
mod host;
mod image;
mod suites;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::shell::{as_root, run};
use crate::workspace::{lock, make_dir};

pub use host::{HostImage, host_image};
pub use image::container_images;
pub use suites::oci_suites;

/// What making them takes.
const PACKAGES: [&str; 4] = ["kmod", "libacl1-dev", "mmdebstrap", "tar"];

const SUITE: &str = "trixie";

/// The folder `dir`, made by `make` if nobody has yet. A folder of its final name is complete, so only makers lock.
fn cached(dir: PathBuf, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if dir.exists() {
        return Ok(dir);
    }
    let _lock = lock(&dir.with_extension("lock"))?;
    if !dir.exists() {
        let new = fresh(&dir)?;
        make(&new)?;
        fs::rename(&new, &dir).with_context(|| format!("complete {}", dir.display()))?;
    }
    Ok(dir)
}

/// An empty folder beside `dir`, which becomes `dir` when it is complete.
fn fresh(dir: &Path) -> Result<PathBuf> {
    let new = dir.with_extension("new");
    if new.exists() {
        run(as_root("rm").args(["-rf", "--one-file-system"]).arg(&new))?;
    }
    make_dir(&new)?;
    Ok(new)
}

/// mmdebstrap, whose mounts in the tree vanish with it, however it ends.
fn mmdebstrap() -> Command {
    let mut command = as_root("unshare");
    command.args(["--mount", "mmdebstrap", "--quiet", "--mode=root"]);
    command
}

/// Names a result by what went in.
pub(crate) fn key(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
        hash.update([0]);
    }
    hash.finalize()
        .iter()
        .take(12)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
