//! `vmbox-guest-rootfs AGENT IMAGE`: writes the guest image that holds AGENT.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

/// Pack a static agent into a guest image.
#[derive(Parser)]
struct Arguments {
    /// The agent, a static ELF binary.
    agent: PathBuf,
    /// Where the image goes; replaced in one step.
    image: PathBuf,
}

fn main() -> Result<()> {
    let Arguments { agent, image } = Arguments::parse();
    let binary = fs::read(&agent).with_context(|| format!("read {}", agent.display()))?;
    let packed =
        vmbox_guest_rootfs::pack(&binary).with_context(|| format!("pack {}", agent.display()))?;
    let partial = image.with_extension("partial");
    fs::write(&partial, &packed).with_context(|| format!("write {}", partial.display()))?;
    fs::rename(&partial, &image).with_context(|| format!("write {}", image.display()))?;
    println!("{}: {} bytes", image.display(), packed.len());
    Ok(())
}
