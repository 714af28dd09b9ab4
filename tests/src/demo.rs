//! `cargo dev demo`: a Debian container in a microVM of its own, from nothing.

use anyhow::Result;

use crate::arch::Arch;
use crate::debian;
use crate::product::{self, Profile};
use crate::streams::Streams;
use crate::test_host;
use crate::workspace::{Workspace, say};

/// What the container says about itself.
const SCRIPT: &str = r#". /etc/os-release
echo "I am $NAME $VERSION"
echo "my kernel is Linux $(uname -r) for $(uname -m)"
set -- /proc/[0-9]*
echo "I see $# processes""#;

/// Builds what is missing, runs it, and returns its exit code.
pub fn run(workspace: &Workspace, arch: Arch) -> Result<i32> {
    let images = debian::container_images(workspace, arch)?;
    product::build(workspace, arch, Profile::Release)?;
    let host = test_host::choose(workspace, arch)?;
    let vmbox = host.product().join("vmbox").display().to_string();
    let image = format!("oci:{}:debian", images.join("oci").display());
    say(&format!("vmbox run --rm {image} sh -c …"));
    let argv = [vmbox.as_str(), "run", "--rm", &image, "sh", "-c", SCRIPT].map(str::to_owned);
    host.run(&argv, &[], &mut Streams::shown())
}
