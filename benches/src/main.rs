//! Boot, start and memory, side by side with runc, crun and QEMU in one run.
//!
//! Runs inside a host whose KVM works (`cargo dev bench` puts it there, in the counting mode in which one nanosecond is
//! one instruction). Every figure is the median of [`sample::ROUNDS`] after a warm-up, the sides taking turns.

mod boot;
mod memory;
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

fn main() -> anyhow::Result<()> {
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
    for file in [boot::kernel(), "guest.cpio", "vmbox", "vmbox-vmm"] {
        let size = bench
            .product
            .join(file)
            .metadata()
            .with_context(|| file.to_owned())?
            .len();
        println!("size of {file:<36} {:>12} KiB", size >> 10);
    }
    let (ours, qemu) = boot::compare(&bench)?;
    println!(
        "{ours}\n{qemu}\nratio vmbox-vmm / {} {:.3}",
        boot::peer_name(),
        ours.median() / qemu.median()
    );
    let starts = start::compare(&bench)?;
    for series in &starts {
        println!(
            "{series}  ({:.2} x {})",
            series.median() / starts[0].median(),
            starts[0].name
        );
    }
    memory::report(&bench)
}
