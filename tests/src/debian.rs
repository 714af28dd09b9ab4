//! Debian trees in the cache: the virtual host's root, and the image that containers are tested with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use crate::arch::Arch;
use crate::oci_layout;
use crate::shell::{as_root, need, output, run};
use crate::workspace::{Workspace, lock, make_dir, say};

const SUITE: &str = "trixie";

/// What the virtual host has beside Debian's minimum: the engines, their tools, the tests' tools.
const HOST_PACKAGES: &str = "busybox-static,ca-certificates,conmon,containerd,containernetworking-plugins,\
crun,docker.io,fio,iperf3,iproute2,iptables,iputils-ping,jq,kmod,linux-image-amd64,nftables,podman,procps,\
psmisc,python3,qemu-system-x86,runc,skopeo,socat,strace,umoci";

/// What the containers' image has beside Debian's minimum.
const IMAGE_PACKAGES: &str = "acl,apt,attr,fio,iproute2,procps,python3,stress-ng";

/// Programs from crates.io that go into the containers' image, with their versions.
const IMAGE_CRATES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Debian's names for the two identities that pjdfstest switches to, and what Linux offers it.
const PJDFSTEST_CONFIG: &str = r#"[features]
posix_fallocate = {}

[settings]
naptime = 0.01
allow_remount = false
expected_failures = []

[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

/// The kernel modules that the virtual host needs before it can see its root.
const BOOT_MODULES: [&str; 3] = ["9pnet_virtio", "9p", "overlay"];

/// The virtual host's files.
#[derive(Debug)]
pub struct HostImage {
    /// Holds `rootfs` and `vmlinuz`; named by the hash of what went in.
    pub dir: PathBuf,
    /// The files of [`BOOT_MODULES`] and of what they need, below the root, in load order.
    pub boot_modules: Vec<PathBuf>,
}

/// The virtual host's root, made by mmdebstrap once.
pub fn host_image(workspace: &Workspace) -> Result<HostImage> {
    let key = key(&["host 1", SUITE, HOST_PACKAGES]);
    let dir = workspace.cache.join("host").join(key);
    if !dir.exists() {
        make_host_image(&dir)?;
    }
    let boot_modules = boot_modules(&dir)?;
    Ok(HostImage { dir, boot_modules })
}

/// A folder of its final name is complete, so only its makers need the lock.
fn make_host_image(dir: &Path) -> Result<()> {
    let _lock = lock(&dir.with_extension("lock"))?;
    if !dir.exists() {
        need(&["mmdebstrap", "kmod"])?;
        say("making the virtual host's root from Debian packages (2 to 5 minutes)");
        let new = fresh(dir)?;
        debootstrap(HOST_PACKAGES, &new.join("rootfs"), &[])?;
        let version = kernel_version(&new)?;
        run(as_root("depmod")
            .arg("-b")
            .arg(new.join("rootfs"))
            .arg(&version))?;
        let kernel = format!("rootfs/boot/vmlinuz-{version}");
        run(as_root("install")
            .args(["-m", "644"])
            .arg(new.join(kernel))
            .arg(new.join("vmlinuz")))?;
        fs::rename(&new, dir)?;
    }
    Ok(())
}

/// The containers' image: `rootfs`, a folder, and `oci`, a layout that holds it under the tag `debian`.
pub fn container_images(workspace: &Workspace) -> Result<PathBuf> {
    let crates = format!("{IMAGE_CRATES:?}");
    let key = key(&[
        "image 1",
        SUITE,
        IMAGE_PACKAGES,
        &crates,
        PJDFSTEST_CONFIG,
        oci_layout::VERSION,
    ]);
    let dir = workspace.cache.join("image").join(key);
    if !dir.exists() {
        make_container_images(workspace, &dir)?;
    }
    Ok(dir)
}

fn make_container_images(workspace: &Workspace, dir: &Path) -> Result<()> {
    let _lock = lock(&dir.with_extension("lock"))?;
    if dir.exists() {
        return Ok(());
    }
    need(&["mmdebstrap", "libacl1-dev", "tar"])?;
    let tools = tools(workspace)?;
    say("making the containers' image from Debian packages (1 to 3 minutes)");
    let new = fresh(dir)?;
    let config = new.join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST_CONFIG)?;
    let mut hooks = vec![
        "--customize-hook=chroot \"$1\" useradd --no-create-home --shell /usr/sbin/nologin tests"
            .into(),
        format!(
            "--customize-hook=install -D -m 644 {} \"$1/usr/local/share/pjdfstest.toml\"",
            config.display()
        ),
    ];
    for (name, _) in IMAGE_CRATES {
        let program = tools.join("bin").join(name);
        hooks.push(format!(
            "--customize-hook=install -m 755 {} \"$1/usr/local/bin/{name}\"",
            program.display()
        ));
    }
    debootstrap(IMAGE_PACKAGES, &new.join("rootfs"), &hooks)?;
    let layer = new.join("layer.tar");
    let mut tar = as_root("tar");
    tar.args(["--sort=name", "--numeric-owner", "--xattrs", "--acls", "-C"]);
    run(tar.arg(new.join("rootfs")).arg("-cf").arg(&layer).arg("."))?;
    oci_layout::write(&new.join("oci"), "debian", &layer)?;
    fs::rename(&new, dir)?;
    Ok(())
}

fn debootstrap(packages: &str, root: &Path, hooks: &[String]) -> Result<()> {
    let mut command = as_root("mmdebstrap");
    command.args(["--quiet", "--mode=root", "--variant=minbase"]);
    command
        .args(["--include", packages])
        .args(hooks)
        .arg(SUITE)
        .arg(root);
    run(&mut command)
}

/// pjdfstest and fsx, static.
fn tools(workspace: &Workspace) -> Result<PathBuf> {
    let root = workspace.cache.join("tools");
    for (name, version) in IMAGE_CRATES {
        say(&format!("building {name} {version}"));
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args([
                "install",
                "--quiet",
                "--locked",
                "--target",
                Arch::native().triple(),
                "--root",
            ])
            .arg(&root);
        cargo
            .arg("--target-dir")
            .arg(workspace.cache.join("tools-build"));
        cargo.args(["--version", version, name]);
        run(cargo
            .current_dir("/")
            .env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    }
    Ok(root)
}

/// An empty folder beside `dir`, which becomes `dir` when it is complete.
fn fresh(dir: &Path) -> Result<PathBuf> {
    let new = dir.with_extension("new");
    if new.exists() {
        run(as_root("rm").arg("-rf").arg(&new))?;
    }
    make_dir(&new)?;
    Ok(new)
}

fn key(parts: &[&str]) -> String {
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

fn kernel_version(image: &Path) -> Result<String> {
    let modules = image.join("rootfs/usr/lib/modules");
    let entry = fs::read_dir(&modules)?
        .next()
        .with_context(|| format!("no kernel in {}", modules.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

fn boot_modules(image: &Path) -> Result<Vec<PathBuf>> {
    need(&["kmod"])?;
    let version = kernel_version(image)?;
    let mut files = Vec::new();
    for module in BOOT_MODULES {
        let mut modprobe = Command::new("/usr/sbin/modprobe");
        modprobe.arg("-d").arg(image.join("rootfs")).args([
            "-S",
            &version,
            "--show-depends",
            module,
        ]);
        for line in output(modprobe.stderr(Stdio::inherit()))?.lines() {
            let file = line
                .strip_prefix("insmod ")
                .and_then(|rest| rest.split(' ').next());
            let Some(file) = file.map(PathBuf::from) else {
                continue;
            };
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}
