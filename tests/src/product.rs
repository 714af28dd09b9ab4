//! Builds what a user installs, static, into one folder.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result};

use crate::arch::Arch;
use crate::shell::{need, output, run};
use crate::system::panicked;
use crate::toolchain::{Toolchain, linker_package};
use crate::workspace::{Workspace, lock, make_dir, say};

/// The workspace's packages that run on the host, and the one that runs in the guest.
const HOST_PACKAGES: [&str; 2] = ["vmbox-shim", "vmbox-vmm"];
const GUEST_PACKAGE: &str = "vmbox-agent";

/// What compiling them takes beside cargo.
const TOOLS: [&str; 4] = ["gcc", "libc6-dev", "libseccomp-dev", "pkg-config"];

/// What compiling the guest kernel takes. `guest-kernel/build` installs the same, but not beside another who installs.
const KERNEL_TOOLS: [&str; 9] = [
    "bc",
    "bison",
    "flex",
    "gcc",
    "libelf-dev",
    "libssl-dev",
    "make",
    "patch",
    "xz-utils",
];

/// Which cargo profile the product is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build, with assertions.
    Debug,
    /// What is shipped and measured.
    Release,
}

impl Profile {
    /// Cargo's name of it for what runs on the host.
    pub fn of_host(self) -> &'static str {
        match self {
            Self::Debug => "dev",
            Self::Release => "release",
        }
    }

    /// And for the agent, which is built for size.
    fn of_guest(self) -> &'static str {
        match self {
            Self::Debug => "dev",
            Self::Release => "guest",
        }
    }
}

/// Builds everything and returns the folder: `vmbox`, `vmbox-vmm`, the guest's kernel, `guest.cpio`.
pub fn build(workspace: &Workspace, arch: Arch, profile: Profile) -> Result<PathBuf> {
    say(&format!(
        "building vmbox, vmbox-vmm and vmbox-agent for {arch}"
    ));
    // Each ends with minutes of one processor's work: beside one another none of them stands idle.
    let (kernel, host, guest) = thread::scope(|scope| {
        let kernel = scope.spawn(|| kernel(workspace, arch));
        let host = scope.spawn(|| binaries(workspace, arch, &HOST_PACKAGES, profile.of_host()));
        let guest = binaries(workspace, arch, &[GUEST_PACKAGE], profile.of_guest())?;
        let host = host.join().map_err(panicked)??;
        let kernel = kernel.join().map_err(panicked)??;
        anyhow::Ok((kernel, host, guest))
    })?;

    let product = workspace.product(arch);
    make_dir(&product)?;
    let _lock = lock(&workspace.root.join(".build/product.lock"))?;
    for name in ["vmbox", "vmbox-vmm"] {
        place(&host.join(name), &product.join(name))?;
    }
    place(&kernel, &product.join(arch.kernel()))?;
    pack(&guest.join("vmbox-agent"), &product.join("guest.cpio"))?;
    say(&format!("{} is complete", product.display()));
    Ok(product)
}

/// The guest kernel, from the cache if it is there.
pub fn kernel(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let room = workspace.root.join("guest-kernel");
    let version = fs::read_to_string(room.join("version")).context("read guest-kernel/version")?;
    need(&KERNEL_TOOLS)?;
    need(&[&format!("linux-source-{}", version.trim())])?;
    if !arch.is_native() {
        need(&[&linker_package(arch)])?;
    }
    let mut build = Command::new(room.join("build"));
    build.args(["--arch", arch.name()]);
    Ok(output(build.env("VMBOX_CACHE", &workspace.cache))?.into())
}

/// `cargo VERB` for static binaries; they run in any host and guest.
pub fn static_cargo(workspace: &Workspace, arch: Arch, verb: &str) -> Result<Command> {
    need(&TOOLS)?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&workspace.root)
        .args([verb, "--quiet", "--target", arch.triple()])
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", format!("/usr/lib/{}", arch.gnu()));
    if !arch.is_native() {
        // A folder of its own: the two compilers would rebuild each other's build scripts and macros.
        cargo.env("CARGO_TARGET_DIR", target_dir(workspace, arch));
        Toolchain::cross(workspace, arch)?.configure(&mut cargo);
    }
    Ok(cargo)
}

/// Builds the programs of `packages`, static, and returns the folder they are in.
pub fn binaries(
    workspace: &Workspace,
    arch: Arch,
    packages: &[&str],
    profile: &str,
) -> Result<PathBuf> {
    let mut cargo = static_cargo(workspace, arch, "build")?;
    for package in packages {
        cargo.args(["--package", package]);
    }
    run(cargo.args(["--bins", "--profile", profile]))?;
    let folder = if profile == "dev" { "debug" } else { profile };
    let target = target_dir(workspace, arch);
    Ok(target.join(arch.triple()).join(folder))
}

/// Cargo's, as the environment or the workspace's .cargo/config.toml says; `-ARCH` is added for another architecture.
fn target_dir(workspace: &Workspace, arch: Arch) -> PathBuf {
    let mut dir = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| ".build/target".into());
    if !arch.is_native() {
        dir.push(format!("-{arch}"));
    }
    workspace.root.join(dir)
}

fn pack(agent: &Path, image: &Path) -> Result<()> {
    let binary = fs::read(agent).with_context(|| format!("read {}", agent.display()))?;
    let packed = vmbox_guest_rootfs::pack(&binary)?;
    say(&format!("guest image: {} bytes", packed.len()));
    write_if_new(image, &packed)
}

/// Copies a file in one step, unless the same bytes are there already.
fn place(from: &Path, to: &Path) -> Result<()> {
    let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
    write_if_new(to, &content)
}

fn write_if_new(to: &Path, content: &[u8]) -> Result<()> {
    if fs::read(to).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let partial = to.with_extension("partial");
    fs::write(&partial, content).with_context(|| format!("write {}", partial.display()))?;
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o755))?;
    fs::rename(&partial, to).with_context(|| format!("write {}", to.display()))
}
