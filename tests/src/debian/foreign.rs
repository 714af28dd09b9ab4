//! Debian trees of the other architecture, made on this one without running a program of the other.
//!
//! Packages are unpacked, and written into dpkg's database as dpkg would. What their scripts would have made in /etc is the
//! same on all architectures, so it is taken from this architecture's tree of the same packages. Letting QEMU's user mode
//! run the scripts was tried: twelve minutes instead of one, and the kernel must be told about it.

use std::path::Path;

use anyhow::Result;

use super::{SUITE, mmdebstrap};
use crate::arch::Arch;
use crate::shell::{as_root, run};

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
/// what the loader reads, and the links of alternatives.
const COMPLETE: &str = r#"
set -eu
tar -C "$1" --exclude=etc/ld.so.cache --exclude='etc/ld.so.conf.d/*-linux-gnu.conf' -c etc var/lib/dpkg/alternatives |
    tar -C "$2" -x --skip-old-files
cd "$1"
find usr -type l -lname '/etc/alternatives/*' -print0 | tar --null -T - -c | tar -C "$2" -x --skip-old-files
"#;

/// Unpacks Debian's minimum and `packages` at `root`; `model` is this architecture's tree of them.
pub fn unpack(arch: Arch, packages: &str, root: &Path, model: &Path) -> Result<()> {
    let mut command = mmdebstrap();
    command.args(["--variant=extract", "--architectures", arch.debian()]);
    command.args(["--include=?essential", "--include=?priority(required)"]);
    command.args(["--include", packages]);
    // It becomes a script of one command, so the text needs no quoting beyond the shell's.
    let hook = format!(
        "--extract-hook=sh -c '{}' register \"$1\"",
        REGISTER.replace('\'', r"'\''")
    );
    run(command.args([&hook, SUITE]).arg(root))?;
    let mut complete = as_root("sh");
    complete.args(["-c", COMPLETE, "complete"]);
    run(complete.arg(model).arg(root))
}
