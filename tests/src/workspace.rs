//! Where things are: the checkout, what is built from it, and the cache that outlives it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::arch::Arch;

/// The checkout and the cache.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The folder of the workspace's Cargo.toml.
    pub root: PathBuf,
    /// `$VMBOX_CACHE`, or `~/.cache/vmbox`: what is slow to make and doesn't depend on our sources.
    pub cache: PathBuf,
}

impl Workspace {
    /// The workspace in which `cargo dev` was called: two of them may share a target directory, and with it this program.
    /// Without cargo, the one that this tool was built from.
    pub fn find() -> Result<Self> {
        let called = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
        let manifest = called.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = manifest.parent().context("tests/ has no parent")?;
        let cache = match std::env::var_os("VMBOX_CACHE") {
            Some(dir) => PathBuf::from(dir),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?)
                .join(".cache/vmbox"),
        };
        make_dir(&cache)?;
        Ok(Self {
            root: root.canonicalize()?,
            cache: cache.canonicalize()?,
        })
    }

    /// What `cargo dev build` collects: `vmbox`, `vmbox-vmm`, the guest's kernel and `guest.cpio`.
    pub fn product(&self, arch: Arch) -> PathBuf {
        self.build_dir("product", arch)
    }

    /// `.build/NAME` for this machine's architecture, and `.build/NAME-ARCH` for another.
    pub fn build_dir(&self, name: &str, arch: Arch) -> PathBuf {
        match arch.is_native() {
            true => self.root.join(".build").join(name),
            false => self.root.join(format!(".build/{name}-{arch}")),
        }
    }

    /// `NAME` in the cache for this machine's architecture, and `NAME-ARCH` for another.
    pub fn cache_dir(&self, name: &str, arch: Arch) -> PathBuf {
        match arch.is_native() {
            true => self.cache.join(name),
            false => self.cache.join(format!("{name}-{arch}")),
        }
    }

    /// The one folder that the virtual host may write to.
    pub fn results(&self) -> PathBuf {
        self.root.join(".build/results")
    }
}

/// Creates a folder and those above it.
pub fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
}

/// Waits until nobody else holds `path` as a lock; it is held until the file is dropped.
pub fn lock(path: &Path) -> Result<File> {
    let file = open_lock(path)?;
    if file.try_lock().is_err() {
        say(&format!("waiting for {}", path.display()));
        file.lock()
            .with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
}

/// Opens the file of a lock without taking it.
pub fn open_lock(path: &Path) -> Result<File> {
    make_dir(path.parent().context("a lock needs a folder")?)?;
    let open = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path);
    open.with_context(|| format!("open {}", path.display()))
}

/// Tells the user what is being done, on stderr so that a command's output stays its own.
pub fn say(text: &str) {
    eprintln!("dev: {text}");
}
