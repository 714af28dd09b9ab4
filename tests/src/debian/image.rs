//! The image that containers are tested with: Debian, test programs, and suites that others wrote.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{PACKAGES, SUITE, cached, foreign, key, mmdebstrap};
use crate::arch::Arch;
use crate::oci_layout;
use crate::product;
use crate::shell::{as_root, need, run};
use crate::workspace::{Workspace, say};

/// What it has beside Debian's minimum.
const CONTENT: &str = "acl,apt,attr,fio,iproute2,procps,python3,stress-ng";

/// Programs from crates.io that go into it, with their versions.
const CRATES: [(&str, &str); 2] = [("pjdfstest", "0.2.2"), ("fsx", "0.3.2")];

/// Debian's names for the two identities that pjdfstest switches to, and what Linux offers it.
const PJDFSTEST_CONFIG: &str = r#"[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.01
allow_remount = false
expected_failures = []

[dummy_auth]
entries = [["nobody", "nogroup"], ["tests", "tests"]]
"#;

/// The containers' image: `rootfs`, a folder, and `oci`, a layout that holds it under the tag `debian`.
pub fn container_images(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let crates = format!("{CRATES:?}");
    let key = key(&[
        "image 2",
        arch.name(),
        SUITE,
        CONTENT,
        &crates,
        PJDFSTEST_CONFIG,
        oci_layout::VERSION,
    ]);
    let dir = workspace.cache_dir("image", arch).join(key);
    cached(dir, |new| make(workspace, arch, new))
}

fn make(workspace: &Workspace, arch: Arch, new: &Path) -> Result<()> {
    need(&PACKAGES)?;
    let tools = tools(workspace, arch)?;
    let root = new.join("rootfs");
    if arch.is_native() {
        install(&root)?;
    } else {
        let model = container_images(workspace, Arch::native())?;
        say(&format!(
            "unpacking the containers' {arch} image from Debian packages (a minute)"
        ));
        foreign::install(arch, CONTENT, &root, &model.join("rootfs"))?;
    }
    let config = new.join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST_CONFIG)?;
    let mut place = as_root("install");
    run(place
        .args(["-m", "644"])
        .arg(&config)
        .arg(root.join("usr/local/share")))?;
    for (name, _) in CRATES {
        let program = tools.join("bin").join(name);
        run(as_root("install")
            .arg(program)
            .arg(root.join("usr/local/bin")))?;
    }
    let layer = new.join("layer.tar");
    let mut tar = as_root("tar");
    tar.args(["--sort=name", "--numeric-owner", "--xattrs", "--acls", "-C"]);
    run(tar.arg(&root).arg("-cf").arg(&layer).arg("."))?;
    oci_layout::write(&new.join("oci"), arch, "debian", &layer)
}

/// This architecture's: the packages, and a user for pjdfstest.
fn install(root: &Path) -> Result<()> {
    say("making the containers' image from Debian packages (1 to 3 minutes)");
    let mut command = mmdebstrap();
    command.args(["--variant=minbase", "--include", CONTENT]);
    command.arg(
        "--customize-hook=chroot \"$1\" useradd --no-create-home --shell /usr/sbin/nologin tests",
    );
    run(command.arg(SUITE).arg(root))
}

/// pjdfstest and fsx, static.
fn tools(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let root = workspace.cache_dir("tools", arch);
    let mut flags = String::from("-C target-feature=+crt-static");
    if !arch.is_native() {
        // pjdfstest links libacl, which needs libattr.
        let libraries = workspace.cache_dir("libraries", arch);
        let files = ["libacl.a", "libattr.a"];
        let libraries = foreign::archives(libraries, arch, "libacl1-dev", &files)?;
        flags = format!("{flags} -L native={}", libraries.display());
    }
    for (name, version) in CRATES {
        say(&format!("building {name} {version} for {arch}"));
        let mut cargo = product::static_cargo(workspace, arch, "install")?;
        cargo.env("RUSTFLAGS", &flags);
        // Half the time to build them; what they wait for is the share.
        cargo.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
        cargo.args(["--locked", "--root"]).arg(&root);
        cargo
            .arg("--target-dir")
            .arg(workspace.cache_dir("tools-build", arch));
        run(cargo.args(["--version", version, name]).current_dir("/"))?;
    }
    Ok(root)
}
