//! The programs that vmbox is measured beside.

use std::env;
use std::fs;
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

/// The whole path of an installed program, so that it is not looked for in vain elsewhere; its file and its libraries' are
/// in memory from now on.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let program = env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed"))?;
    to_memory(&program)?;
    // A host that was unpacked without running anything has none, and the linker looks into the folders.
    let cache = Path::new("/etc/ld.so.cache");
    if cache.exists() {
        to_memory(cache)?;
    }
    let libraries = Command::new("ldd").arg(&program).output()?;
    // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x7f…)"; a static program has none of these.
    for word in String::from_utf8_lossy(&libraries.stdout).split_whitespace() {
        if word.starts_with('/') {
            to_memory(Path::new(word))?;
        }
    }
    Ok(program)
}

/// Brings a file there, and all symbolic links on the way to it: the counting host's root lies on another machine's disk,
/// and is written to in memory, so a change of owner that changes nothing does it. While the host waits for a reply of
/// that disk, its clock has no instructions to count, and leaps.
pub fn to_memory(file: &Path) -> anyhow::Result<()> {
    let mut way: Vec<_> = file.ancestors().collect();
    way.reverse();
    for step in way {
        lchown(step, None, None).with_context(|| step.display().to_string())?;
        if step.is_symlink() {
            let target = fs::read_link(step)?;
            to_memory(&step.parent().unwrap_or(step).join(target))?;
        }
    }
    Ok(())
}
