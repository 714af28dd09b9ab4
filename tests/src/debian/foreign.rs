//! Debian trees of the other architecture, made on this one without running a program of the other.
//!
//! Packages are unpacked, and if need be written into dpkg's database as dpkg would. What their scripts would have made in /etc is the
//! same on all architectures, so it is taken from this architecture's tree of the same packages. Letting QEMU's user mode
//! run the scripts was tried: twelve minutes instead of one, and the kernel must be told about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{SUITE, cached, key, mmdebstrap};
use crate::arch::Arch;
use crate::shell::{as_root, output, run};
use crate::workspace::say;

/// Enters the packages that were unpacked in the tree `$1` into its dpkg database: deb(5) in, dpkg-query(1) out.
const REGISTER: &str = r#"
set -eu
db=$1/var/lib/dpkg
mkdir -p "$db/info" "$db/updates"
: > "$db/status.new"
for deb in "$1"/var/cache/apt/archives/*.deb; do
    control=$(mktemp -d)
    dpkg-deb -e "$deb" "$control"
    name=$(sed -n 's/^Package: //p' "$control/control")
    if grep -q '^Multi-Arch: same' "$control/control"; then
        name=$name:$(sed -n 's/^Architecture: //p' "$control/control")
    fi
    sed 's/^Package: .*/&\nStatus: install ok installed/' "$control/control" >> "$db/status.new"
    echo >> "$db/status.new"
    rm "$control/control"
    for file in "$control"/*; do
        [ ! -e "$file" ] || cp "$file" "$db/info/$name.${file##*/}"
    done
    rm -r "$control"
    dpkg-deb --fsys-tarfile "$deb" | tar -t | sed 's,^\./,/,; s,/$,,; s,^$,/.,' > "$db/info/$name.list"
done
mv "$db/status.new" "$db/status"
"#;

/// Copies what no package ships from the tree `$1` to the tree `$2`: /etc as the packages' scripts have left it, but for
/// what the loader reads; the links of alternatives; the folders and links outside of /usr; Python's compiled modules,
/// without which every start compiles them anew.
const COMPLETE: &str = r#"
set -euo pipefail
tar -C "$1" --exclude=etc/ld.so.cache --exclude='etc/ld.so.conf.d/*-linux-gnu.conf' -c etc var/lib/dpkg/alternatives |
    tar -C "$2" -x --skip-old-files
cd "$1"
{
    find usr -type l -lname '/etc/alternatives/*' -print0
    find media mnt opt srv usr/local var '(' -type d -o -type l ')' -print0
    find usr/lib/python3* -path '*/__pycache__*' -print0
} | tar --no-recursion --null -T - -c | tar -C "$2" -x --skip-old-files
"#;

/// Unpacks Debian's minimum and `packages` at `root`, without a database of them, which takes longer than unpacking.
///
/// `model` is this architecture's tree of them.
pub fn unpack(arch: Arch, packages: &str, root: &Path, model: &Path) -> Result<()> {
    extract(arch, packages, root, model, None)
}

/// As [`unpack`], and dpkg and apt know what is there.
pub fn install(arch: Arch, packages: &str, root: &Path, model: &Path) -> Result<()> {
    let script = REGISTER.replace('\'', r"'\''");
    // A hook is a script of one command, so the text needs no quoting beyond the shell's.
    let hook = format!("--extract-hook=sh -c '{script}' register \"$1\"");
    extract(arch, packages, root, model, Some(hook))
}

fn extract(
    arch: Arch,
    packages: &str,
    root: &Path,
    model: &Path,
    hook: Option<String>,
) -> Result<()> {
    let mut command = mmdebstrap();
    command.args(["--variant=extract", "--architectures", arch.debian()]);
    command.args(["--include=?essential", "--include=?priority(required)"]);
    command.args(["--include", packages]).args(hook);
    run(command.arg(SUITE).arg(root))?;
    let mut complete = as_root("bash");
    complete.args(["-c", COMPLETE, "complete"]);
    run(complete.arg(model).arg(root))
}

/// Static archives of the other architecture's C libraries, by the names of their packages and files.
///
/// They are of this machine's release, as is the compiler that links them.
pub fn archives(cache: PathBuf, arch: Arch, package: &str, files: &[&str]) -> Result<PathBuf> {
    let release =
        output(Command::new("sh").args(["-c", ". /etc/os-release; echo $VERSION_CODENAME"]))?;
    let key = key(&[
        "archives 1",
        arch.name(),
        &release,
        package,
        &files.join(" "),
    ]);
    cached(cache.join(key), |new| {
        say(&format!("unpacking {package} for {arch}"));
        let tree = new.join("tree");
        let mut command = mmdebstrap();
        command.args(["--variant=extract", "--architectures", arch.debian()]);
        run(command.args(["--include", package, &release]).arg(&tree))?;
        for file in files {
            fs::copy(
                tree.join("usr/lib").join(arch.gnu()).join(file),
                new.join(file),
            )
            .with_context(|| format!("{package} has no {file}"))?;
        }
        run(as_root("rm").args(["-rf", "--one-file-system"]).arg(&tree))
    })
}
