//! The virtual host's root: Debian with the engines and the tests' tools, and its kernel beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::{PACKAGES, SUITE, cached, foreign, key, mmdebstrap};
use crate::arch::Arch;
use crate::shell::{as_root, need, output, run};
use crate::workspace::{Workspace, say};

/// The kernel modules that the virtual host needs before it can see its root.
const BOOT_MODULES: [&str; 3] = ["9pnet_virtio", "9p", "overlay"];

/// What it has beside Debian's minimum: the engines, their tools, the tests' tools.
fn packages(arch: Arch) -> String {
    let (kernel, qemu) = match arch {
        Arch::X86_64 => ("linux-image-amd64", "qemu-system-x86"),
        Arch::Aarch64 => ("linux-image-arm64", "qemu-system-arm"),
    };
    format!(
        "aardvark-dns,busybox-static,ca-certificates,catatonit,conmon,containerd,containernetworking-plugins,\
crun,docker-cli,docker-compose,docker.io,fio,golang-github-opencontainers-specs-dev,iperf3,iproute2,iptables,iputils-ping,jq,\
kmod,{kernel},nftables,podman,procps,psmisc,python3,python3-jsonschema,{qemu},runc,skopeo,socat,strace,umoci"
    )
}

/// The virtual host's files.
#[derive(Debug)]
pub struct HostImage {
    /// Holds `rootfs` and `vmlinuz`; named by the hash of what went in.
    pub dir: PathBuf,
    /// The files of [`BOOT_MODULES`] and of what they need, below the root, in load order.
    pub boot_modules: Vec<PathBuf>,
}

/// The virtual host's root, made by mmdebstrap once.
pub fn host_image(workspace: &Workspace, arch: Arch) -> Result<HostImage> {
    let host = workspace.cache_dir("host", arch);
    let dir = if arch.is_native() {
        let key = key(&["host 1", SUITE, &packages(arch)]);
        cached(host.join(key), |new| {
            say("making the virtual host's root from Debian packages (2 to 5 minutes)");
            need(&PACKAGES)?;
            let mut command = mmdebstrap();
            command.args(["--variant=minbase", "--include", &packages(arch), SUITE]);
            run(command.arg(new.join("rootfs")))?;
            add_kernel(new)
        })?
    } else {
        let model = host_image(workspace, Arch::native())?;
        let parts = ["foreign host 3", SUITE, &packages(arch)];
        cached(host.join(key(&parts)), |new| {
            say(&format!(
                "unpacking the virtual {arch} host's root from Debian packages (1 to 2 minutes)"
            ));
            need(&PACKAGES)?;
            let root = new.join("rootfs");
            foreign::unpack(arch, &packages(arch), &root, &model.dir.join("rootfs"))?;
            add_kernel(new)
        })?
    };
    let boot_modules = boot_modules(&dir)?;
    Ok(HostImage { dir, boot_modules })
}

/// `vmlinuz` beside the root, and what modprobe reads.
fn add_kernel(new: &Path) -> Result<()> {
    let root = new.join("rootfs");
    let version = kernel_version(new)?;
    run(as_root("depmod").arg("-b").arg(&root).arg(&version))?;
    run(as_root("install")
        .args(["-m", "644"])
        .arg(root.join(format!("boot/vmlinuz-{version}")))
        .arg(new.join("vmlinuz")))
}

fn kernel_version(image: &Path) -> Result<String> {
    let modules = image.join("rootfs/usr/lib/modules");
    let entry = fs::read_dir(&modules)?
        .next()
        .with_context(|| format!("no kernel in {}", modules.display()))??;
    Ok(entry.file_name().to_string_lossy().into_owned())
}

fn boot_modules(image: &Path) -> Result<Vec<PathBuf>> {
    need(&PACKAGES)?;
    let version = kernel_version(image)?;
    let mut files = Vec::new();
    for module in BOOT_MODULES {
        let mut modprobe = Command::new("/usr/sbin/modprobe");
        modprobe.arg("-d").arg(image.join("rootfs"));
        modprobe.args(["-S", &version, "--show-depends", module]);
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
