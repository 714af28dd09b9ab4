//! The OCI suites of others, built from Debian's source packages in a Debian tree of their own.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{PACKAGES, SUITE, cached, key, mmdebstrap};
use crate::shell::{as_root, need, run};
use crate::workspace::{Workspace, make_dir, say};

/// What building them takes; runc's and runtime-tools' own packages bring the libraries that they are compiled with.
const TOOLS: &str = "bats,build-essential,busybox-static,ca-certificates,\
golang-github-google-uuid-dev,golang-github-opencontainers-runc-dev,\
golang-github-opencontainers-runtime-tools-dev,golang-go";

/// What of ours goes into the build, in `tests/conformance`.
const OURS: [&str; 4] = ["build", "gcc", "get-images.sh", "tap.go"];

/// Runs `$2/build` in the tree `$1`, to which nothing is written: its result goes to `$3`, all else to memory.
const ENTER: &str = r#"
set -eu
mount -t tmpfs -o size=6g tmpfs "$3.scratch"
mkdir "$3.scratch/upper" "$3.scratch/work" "$3.scratch/root"
cd "$3.scratch"
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay root
mkdir -p root/build/ours root/build/out
mount --bind "$2" root/build/ours
mount --bind "$3" root/build/out
mount -t proc proc root/proc
mount --rbind /dev root/dev
cp /etc/resolv.conf root/etc/resolv.conf
chroot root /bin/bash /build/ours/build /build/ours /build/out
"#;

/// The folder of the suites: `runtime-tools`, `bats`, `tools` to run them with, and `sources`, what they were built from.
pub fn oci_suites(workspace: &Workspace) -> Result<PathBuf> {
    let ours = workspace.root.join("tests/conformance");
    let mut parts = vec!["suites 1".to_owned(), SUITE.into(), TOOLS.into()];
    for name in OURS {
        let path = ours.join(name);
        parts.push(fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let dir = workspace.cache.join("suites").join(key(&parts));
    cached(dir, |new| {
        let tree = tree(workspace)?;
        say("building the OCI suites from Debian's sources (2 to 10 minutes)");
        build(&tree, &ours, new)
    })
}

/// A Debian tree with a Go compiler.
fn tree(workspace: &Workspace) -> Result<PathBuf> {
    let dir = workspace.cache.join("suites-tree");
    cached(dir.join(key(&["tree 1", SUITE, TOOLS])), |new| {
        say("making a Debian tree to build the OCI suites in (3 to 6 minutes)");
        need(&PACKAGES)?;
        let mut command = mmdebstrap();
        command.args(["--variant=minbase", "--include", TOOLS, SUITE]);
        run(command.arg(new.join("rootfs")))
    })
}

fn build(tree: &Path, ours: &Path, out: &Path) -> Result<()> {
    let mut scratch = out.as_os_str().to_owned();
    scratch.push(".scratch");
    make_dir(Path::new(&scratch))?;
    let mut enter = as_root("unshare");
    enter.args(["--mount", "sh", "-c", ENTER, "enter"]);
    run(enter.arg(tree.join("rootfs")).arg(ours).arg(out))?;
    fs::remove_dir(&scratch).context("remove the build's mount point")
}
