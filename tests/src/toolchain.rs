//! A compiler for the other architecture, out of Debian's packages: cargo as it is, Debian's rustc, GNU's linker.
//!
//! rustup's compiler has no standard library for another target, and dpkg installs no library of a foreign
//! architecture without being told to. So the packages are unpacked in the cache, and dpkg is told nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::debian::key;
use crate::shell::{as_root, need, output, run};
use crate::workspace::{Workspace, lock, make_dir, say};

/// Debian's newest compiler: the one that it builds browsers with, in the security suite.
const COMPILER: &str = "rustc-web";
/// Its standard library, of one version with it.
const LIBRARY: &str = "libstd-rust-web-dev";
/// The one C library that our programs link, for its static archive.
const SECCOMP: &str = "libseccomp-dev";

/// Changes when what is unpacked does.
const VERSION: &str = "toolchain 1";

/// Finds its own folder, because it is made under another name than it is used by.
const WRAPPER: &str = r#"#!/bin/sh
here=${0%/*}
LD_LIBRARY_PATH=$here/usr/lib/HOST exec "$here/usr/bin/${0##*/}" "$@"
"#;

/// What cargo needs to build for an architecture that isn't this machine's.
#[derive(Debug)]
pub struct Toolchain {
    arch: Arch,
    dir: PathBuf,
}

impl Toolchain {
    /// The one for `arch`, from the cache or from this machine's Debian mirror.
    pub fn cross(workspace: &Workspace, arch: Arch) -> Result<Self> {
        need(&[
            "gcc",
            "libc6-dev",
            &linker_package(arch),
            &libc_package(arch),
        ])?;
        let compiler = candidate(COMPILER)?;
        new_enough(&compiler)?;
        let key = key(&[
            VERSION,
            Arch::native().name(),
            arch.name(),
            &compiler,
            &candidate(SECCOMP)?,
        ]);
        let dir = workspace.cache.join("toolchain").join(key);
        let toolchain = Self { arch, dir };
        if !toolchain.dir.exists() {
            toolchain.make()?;
        }
        need_libraries_of(&llvm()?)?;
        Ok(toolchain)
    }

    /// Lets a cargo command build with it.
    pub fn configure(&self, cargo: &mut Command) {
        let triple = self.arch.triple();
        let cc = format!("{}-gcc", self.arch.gnu());
        let shouted = triple.to_uppercase().replace('-', "_");
        let plain = triple.replace('-', "_");
        cargo
            .env("RUSTC", self.dir.join("rustc"))
            .env("RUSTDOC", self.dir.join("rustdoc"))
            .env(format!("CARGO_TARGET_{shouted}_LINKER"), &cc)
            .env(format!("CC_{plain}"), &cc)
            .env(format!("AR_{plain}"), format!("{}-ar", self.arch.gnu()))
            .env("LIBSECCOMP_LIB_PATH", self.libraries());
    }

    fn libraries(&self) -> PathBuf {
        self.dir.join("usr/lib").join(self.arch.gnu())
    }

    /// A folder of its final name is complete, so only its makers need the lock.
    fn make(&self) -> Result<()> {
        let _lock = lock(&self.dir.with_extension("lock"))?;
        if self.dir.exists() {
            return Ok(());
        }
        say(&format!("unpacking a Rust compiler for {}", self.arch));
        let new = self.dir.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new)?;
        }
        make_dir(&new)?;
        let apt = Apt::new(&new.join("apt"), self.arch)?;
        for package in packages(self.arch)? {
            apt.unpack(&package, &new)?;
        }
        drop(apt);
        for name in ["rustc", "rustdoc"] {
            let path = new.join(name);
            fs::write(&path, WRAPPER.replace("HOST", Arch::native().gnu()))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        fs::rename(&new, &self.dir)?;
        Ok(())
    }
}

/// apt with lists of its own, which know both architectures; the machine's apt does not learn of it.
struct Apt {
    dir: PathBuf,
    options: Vec<String>,
}

impl Apt {
    fn new(dir: &Path, arch: Arch) -> Result<Self> {
        for folder in ["lists/partial", "cache/archives/partial", "debs"] {
            make_dir(&dir.join(folder))?;
        }
        let at = dir.display();
        fs::write(dir.join("sources.list"), sources()?)?;
        let native = Arch::native().debian();
        let options = vec![
            format!("Dir::Etc::sourcelist={at}/sources.list"),
            "Dir::Etc::sourceparts=/dev/null".into(),
            format!("Dir::State::lists={at}/lists"),
            format!("Dir::Cache={at}/cache"),
            "Dir::State::status=/dev/null".into(),
            format!("APT::Architecture={native}"),
            format!("APT::Architectures={native},{}", arch.debian()),
            "APT::Sandbox::User=root".into(),
            "Acquire::Languages=none".into(),
        ];
        let apt = Self {
            dir: dir.to_owned(),
            options,
        };
        run(apt.get().args(["update", "-qq"]))?;
        Ok(apt)
    }

    fn get(&self) -> Command {
        let mut get = Command::new("apt-get");
        for option in &self.options {
            get.args(["-o", option]);
        }
        get
    }

    /// Downloads one package and unpacks it below `root`; none of its scripts are run.
    fn unpack(&self, package: &str, root: &Path) -> Result<()> {
        let debs = self.dir.join("debs");
        run(self
            .get()
            .args(["download", "-qq", package])
            .current_dir(&debs))?;
        for deb in fs::read_dir(&debs)? {
            let deb = deb?.path();
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(root))?;
            fs::remove_file(&deb)?;
        }
        Ok(())
    }
}

impl Drop for Apt {
    /// The lists are a hundred megabytes that nobody reads again.
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// What is unpacked, as apt names it: the compiler with its libraries, the standard library for both, libseccomp.
fn packages(arch: Arch) -> Result<Vec<String>> {
    let version = candidate(COMPILER)?;
    let native = Arch::native().debian();
    let foreign = arch.debian();
    Ok(vec![
        format!("{COMPILER}:{native}={version}"),
        format!("{}:{native}={version}", shared_library()?),
        format!("{LIBRARY}:{native}={version}"),
        format!("{LIBRARY}:{foreign}={version}"),
        format!("{}:{native}", llvm()?),
        format!("{SECCOMP}:{foreign}"),
    ])
}

/// The package of librustc_driver.so, which has the compiler's version in its name.
fn shared_library() -> Result<String> {
    dependency(LIBRARY, "libstd-rust-web-")
}

/// The package of the LLVM that this compiler was linked to.
fn llvm() -> Result<String> {
    dependency(&shared_library()?, "libllvm")
}

/// What LLVM in turn links to is ordinary, so it is installed.
fn need_libraries_of(package: &str) -> Result<()> {
    let names = dependencies(package)?;
    need(&names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn dependency(package: &str, prefix: &str) -> Result<String> {
    let names = dependencies(package)?;
    let name = names.into_iter().find(|name| name.starts_with(prefix));
    name.with_context(|| format!("{package} depends on no {prefix}…"))
}

fn dependencies(package: &str) -> Result<Vec<String>> {
    let fields = output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))?;
    Ok(depends(&fields))
}

/// The names in a package's `Depends`, the first of each set of alternatives.
fn depends(fields: &str) -> Vec<String> {
    let line = fields
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"));
    let names = line.unwrap_or_default().split(',');
    names
        .filter_map(|name| name.split_whitespace().next())
        .map(|name| name.split(':').next().unwrap_or(name).to_owned())
        .collect()
}

/// The version of a package that apt would install here.
fn candidate(package: &str) -> Result<String> {
    let mut version = version(package)?;
    if version.is_none() {
        run(as_root("apt-get").args(["update", "-qq"]))?;
        version = self::version(package)?;
    }
    version.with_context(|| {
        format!("apt knows no {package}: building for another architecture needs Debian 12 or 13 and its security suite")
    })
}

fn version(package: &str) -> Result<Option<String>> {
    let policy = output(Command::new("apt-cache").args(["policy", package]))?;
    let line = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "));
    Ok(line.filter(|v| *v != "(none)").map(str::to_owned))
}

/// Debian's own repositories among those that this machine's apt is configured with.
fn sources() -> Result<String> {
    let listed = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Identifier: Packages",
        "Origin: Debian",
    ]))?;
    if listed.is_empty() {
        bail!("apt is configured with no repository of Debian's own");
    }
    const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    Ok(listed
        .lines()
        .map(|line| format!("deb [signed-by={KEYS}] {line}\n"))
        .collect())
}

/// Refuses a compiler that our sources are too new for.
fn new_enough(version: &str) -> Result<()> {
    let wanted = env!("CARGO_PKG_RUST_VERSION");
    if release(version) < release(wanted) {
        bail!(
            "Debian's {COMPILER} is {version}, and vmbox needs Rust {wanted}: is the security suite among apt's sources?"
        );
    }
    Ok(())
}

/// `1.96.0+dfsg1-1~deb12u2` is (1, 96).
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Debian's cross compiler for C, which links Rust's programs too.
pub fn linker_package(arch: Arch) -> String {
    format!("gcc-{}", arch.gnu().replace('_', "-"))
}

fn libc_package(arch: Arch) -> String {
    format!("libc6-dev-{}-cross", arch.debian())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_older_compiler_is_refused_by_its_version() {
        let error = new_enough("1.85.0+dfsg3-1~deb12u3").unwrap_err();
        assert!(error.to_string().contains("1.85.0+dfsg3"), "{error}");
        new_enough("1.96.0+dfsg1-1~deb12u2").unwrap();
    }

    #[test]
    fn dependencies_are_names_alone() {
        let fields = "Package: x\nDepends: libc6 (>= 2.36), libllvm22:any, a | b\nSection: rust\n";
        assert_eq!(depends(fields), ["libc6", "libllvm22", "a"]);
    }

    #[test]
    fn the_cross_tools_have_debians_names() {
        assert_eq!(linker_package(Arch::X86_64), "gcc-x86-64-linux-gnu");
        assert_eq!(libc_package(Arch::Aarch64), "libc6-dev-arm64-cross");
    }
}
