//! Boot, start and memory, side by side with runc, crun and QEMU in one run.
//!
//! Runs inside a host whose KVM works (`cargo dev bench` puts it there, in the counting mode in which one nanosecond is
//! one instruction). Every figure is the median of [`sample::ROUNDS`] after a warm-up, the sides taking turns.

mod boot;
mod engines;
mod keepers;
mod memory;
mod peer;
mod sample;
mod start;

use std::path::PathBuf;

use anyhow::Context;

/// Where everything is, all of it in memory so that no file system is measured.
pub struct Bench {
    /// `vmbox`, `vmbox-vmm`, the guest's kernel, `guest.cpio`.
    product: PathBuf,
    /// An OCI bundle with a small root file system.
    bundle: PathBuf,
    /// For sockets and logs.
    work: PathBuf,
}

/// What can be asked for by name; all of it if nothing is.
const FIGURES: [&str; 5] = ["sizes", "boot", "start", "engines", "memory"];

fn main() -> anyhow::Result<()> {
    let names: Vec<String> = std::env::args().skip(1).collect();
    for name in &names {
        let known = FIGURES.contains(&name.as_str());
        anyhow::ensure!(known, "there is no {name:?}, but {FIGURES:?}");
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|other| other == name);
    let product = PathBuf::from(
        std::env::var_os("VMBOX_TEST_PRODUCT")
            .context("VMBOX_TEST_PRODUCT is not set: use `cargo dev bench`")?,
    );
    let work = PathBuf::from("/tmp/vmbox-bench");
    let _ = std::fs::remove_dir_all(&work);
    std::fs::create_dir_all(&work)?;
    let bundle = start::make_bundle(&work)?;
    let bench = Bench {
        product,
        bundle,
        work,
    };
    if wanted("sizes") {
        sizes(&bench)?;
    }
    if wanted("boot") {
        boot::compare(&bench)?;
    }
    if wanted("start") {
        start::compare(&bench)?;
    }
    if wanted("engines") {
        engines::compare(&bench)?;
    }
    if wanted("memory") {
        memory::report(&bench)?;
        keepers::report(&bench)?;
    }
    Ok(())
}

/// Of what a user installs.
fn sizes(bench: &Bench) -> anyhow::Result<()> {
    for file in [boot::kernel(), "guest.cpio", "vmbox", "vmbox-vmm"] {
        let metadata = bench.product.join(file).metadata();
        let size = metadata.with_context(|| file.to_owned())?.len();
        println!("size of {file:<36} {:>12} KiB", size >> 10);
    }
    Ok(())
}
