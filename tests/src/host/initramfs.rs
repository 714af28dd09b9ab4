//! The virtual host's initramfs: the daemon as /init, the modules that reach the root, and the plan.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cpio::newc::{self, ModeFileType};

use crate::hostd::{PLAN, Plan};

/// Writes it to `path`, readable by its owner only, since the plan holds the host's token.
pub fn write(path: &Path, daemon: &Path, plan: &Plan, modules: &[PathBuf]) -> Result<()> {
    let mut archive = Vec::new();
    for folder in ["dev", "modules", "proc", "sys", "lower", "upper", "root"] {
        add(&mut archive, folder, ModeFileType::Directory, &[])?;
    }
    let console = newc::Builder::new("dev/console")
        .mode(0o600)
        .set_mode_file_type(ModeFileType::Char)
        .rdev_major(5)
        .rdev_minor(1);
    console.write(&mut archive, 0).finish()?;
    for module in modules {
        let name = module
            .file_name()
            .context("a module without a name")?
            .to_string_lossy();
        add(
            &mut archive,
            &format!("modules/{name}"),
            ModeFileType::Regular,
            &read(module)?,
        )?;
    }
    add(
        &mut archive,
        PLAN.trim_start_matches('/'),
        ModeFileType::Regular,
        &serde_json::to_vec(plan)?,
    )?;
    add(&mut archive, "init", ModeFileType::Regular, &read(daemon)?)?;
    let archive = newc::trailer(archive)?;
    let _ = fs::remove_file(path);
    let mut file = fs::File::options()
        .create_new(true)
        .write(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(&archive).context("write the initramfs")
}

fn add(archive: &mut Vec<u8>, name: &str, kind: ModeFileType, content: &[u8]) -> Result<()> {
    let entry = newc::Builder::new(name)
        .mode(0o755)
        .set_mode_file_type(kind);
    let mut writer = entry.write(archive, u32::try_from(content.len())?);
    writer.write_all(content)?;
    writer.finish()?;
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
