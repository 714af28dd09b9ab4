//! Bad input: one clear line, the right exit code, and nothing left behind.

use std::fs;
use std::io::Write;
use std::path::Path;

use vmbox_tests::arch::Arch;

use crate::kit::{Corner, Done, image, product, rootfs};

/// Tries something that must be refused with `code` and these words, and looks for what it left.
#[track_caller]
fn refused(corner: &Corner, args: &[&str], code: i32, words: &[&str]) {
    let before = corner.inventory();
    let done = corner.run(args);
    done.refuses(code, words);
    corner.assert_nothing_left(&before);
}

#[test]
fn missing_bundle() {
    let corner = Corner::new("bad-bundle");
    refused(
        &corner,
        &["--bundle", "/no/such/bundle", "x"],
        1,
        &["/no/such/bundle"],
    );
}

#[test]
fn malformed_config_names_the_field() {
    let corner = Corner::new("bad-config");
    let bundle = corner.path("bundle");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.2.0","process":{"cwd":"/","args":"not a list"},"root":{"path":"rootfs"}}"#).unwrap();
    refused(
        &corner,
        &["--bundle", bundle.to_str().unwrap(), "x"],
        1,
        &["config.json", "process.args"],
    );
}

#[test]
fn what_no_guest_can_do_is_refused_by_its_field() {
    let corner = Corner::new("bad-field");
    let bundle = corner.path("bundle");
    fs::create_dir_all(bundle.join("rootfs")).unwrap();
    let spec = r#"{"ociVersion":"1.2.0","root":{"path":"rootfs"},"process":{"cwd":"/","args":["true"],"user":{"uid":0,"gid":0},"apparmorProfile":"my-profile"}}"#;
    fs::write(bundle.join("config.json"), spec).unwrap();
    refused(
        &corner,
        &["--bundle", bundle.to_str().unwrap(), "x"],
        1,
        &["config.json", "process.apparmorProfile", "my-profile"],
    );
}

#[test]
fn absent_rootfs() {
    let corner = Corner::new("bad-rootfs");
    let bundle = corner.path("bundle");
    fs::create_dir(&bundle).unwrap();
    fs::write(bundle.join("config.json"), r#"{"ociVersion":"1.2.0","process":{"cwd":"/","args":["true"],"user":{"uid":0,"gid":0}},"root":{"path":"nowhere"}}"#).unwrap();
    refused(
        &corner,
        &["--bundle", bundle.to_str().unwrap(), "x"],
        1,
        &["nowhere"],
    );
}

#[test]
fn kernel_that_is_a_text_file() {
    let corner = Corner::new("bad-kernel");
    let kernel = corner.path("kernel");
    fs::write(&kernel, "I am not a kernel\n").unwrap();
    let kernel = kernel.to_str().unwrap();
    refused(
        &corner,
        &[
            "--rm",
            "--name",
            "bad-kernel",
            "--kernel",
            kernel,
            &image(),
            "true",
        ],
        125,
        &[kernel, Arch::native().kernel()],
    );
}

/// The architecture that this host is not of.
fn other() -> Arch {
    let others = Arch::ALL.into_iter().find(|arch| !arch.is_native());
    others.unwrap()
}

#[test]
fn kernel_of_the_other_architecture() {
    let corner = Corner::new("other-kernel");
    let mut bytes = vec![0; 4096];
    match other() {
        Arch::X86_64 => {
            bytes[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
            bytes[18] = 62;
        }
        Arch::Aarch64 => bytes[56..60].copy_from_slice(b"ARM\x64"),
    }
    let kernel = corner.path("kernel");
    fs::write(&kernel, bytes).unwrap();
    let kernel = kernel.to_str().unwrap();
    let args = ["--rm", "--kernel", kernel, &image(), "true"];
    let words = [kernel, other().name(), Arch::native().kernel()];
    refused(&corner, &args, 125, &words);
}

#[test]
fn image_of_the_other_architecture() {
    let corner = Corner::new("other-image");
    let layer = tar(&corner, "add('file', b'x')");
    layout_for(other(), &corner.path("oci"), &layer, None);
    let reference = format!("oci:{}:t", corner.path("oci").display());
    let [found, wanted] = [other(), Arch::native()].map(|arch| format!("linux/{}", arch.debian()));
    let args = ["--rm", &reference, "true"];
    refused(&corner, &args, 125, &[&found, &wanted]);
}

#[test]
fn one_mebibyte_of_memory() {
    let corner = Corner::new("bad-memory");
    refused(
        &corner,
        &[
            "--rm",
            "--name",
            "bad-memory",
            "--memory",
            "1M",
            &image(),
            "true",
        ],
        125,
        &["memory", "32"],
    );
}

#[test]
fn volume_that_is_not_there() {
    let corner = Corner::new("bad-volume");
    refused(
        &corner,
        &[
            "--rm",
            "--name",
            "bad-volume",
            "-v",
            "/no/such/path:/data",
            &image(),
            "true",
        ],
        125,
        &["/no/such/path"],
    );
}

#[test]
fn image_that_is_not_there() {
    let corner = Corner::new("bad-image");
    refused(
        &corner,
        &["--rm", "--name", "bad-image", "oci:/no/such/layout", "true"],
        125,
        &["/no/such/layout"],
    );
}

/// A one-layer OCI layout; `layer` is its uncompressed tar, `claimed` the digest that the manifest gives it.
fn layout(dir: &Path, layer: &[u8], claimed: Option<&str>) {
    layout_for(Arch::native(), dir, layer, claimed);
}

fn layout_for(arch: Arch, dir: &Path, layer: &[u8], claimed: Option<&str>) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = sha256(bytes);
        fs::write(blobs.join(&digest), bytes).unwrap();
        digest
    };
    let layer_digest = blob(layer);
    if let Some(claimed) = claimed {
        fs::rename(blobs.join(&layer_digest), blobs.join(claimed)).unwrap();
    }
    let named = claimed.unwrap_or(&layer_digest);
    let architecture = arch.debian();
    let config = format!(
        r#"{{"architecture":"{architecture}","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{layer_digest}"]}}}}"#
    );
    let config_digest = blob(config.as_bytes());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:{named}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    );
    let manifest_digest = blob(manifest.as_bytes());
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:{manifest_digest}","size":{},"annotations":{{"org.opencontainers.image.ref.name":"t"}}}}]}}"#,
        manifest.len()
    );
    fs::write(dir.join("index.json"), index).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    String::from_utf8(out).unwrap()[..64].to_owned()
}

/// A tar of one member, written by python's tarfile, which takes any name and link.
fn tar(corner: &Corner, python: &str) -> Vec<u8> {
    let file = corner.path("layer.tar");
    let script = format!(
        "import tarfile, io\nt = tarfile.open('{}', 'w')\ndef add(name, data=b'', **kw):\n    i = tarfile.TarInfo(name); i.size = len(data)\n    for k, v in kw.items(): setattr(i, k, v)\n    t.addfile(i, io.BytesIO(data))\n{python}\nt.close()\n",
        file.display()
    );
    let made = Done::of(
        std::process::Command::new("python3")
            .args(["-c", &script])
            .output()
            .unwrap(),
    );
    assert!(made.status.success(), "{}", made.stderr);
    fs::read(file).unwrap()
}

#[test]
fn layer_of_another_digest() {
    let corner = Corner::new("bad-digest");
    let layer = tar(&corner, "add('file', b'x')");
    let claimed = "0123456789abcdef".repeat(4);
    layout(&corner.path("oci"), &layer, Some(&claimed));
    let reference = format!("oci:{}:t", corner.path("oci").display());
    refused(
        &corner,
        &["--rm", "--name", "bad-digest", &reference, "true"],
        125,
        &[&claimed, "digest"],
    );
}

#[test]
fn layer_that_climbs_out() {
    let corner = Corner::new("bad-dotdot");
    let layer = tar(
        &corner,
        "add('../../../../run/vmbox-test/bad-dotdot/escaped', b'x')",
    );
    layout(&corner.path("oci"), &layer, None);
    let reference = format!("oci:{}:t", corner.path("oci").display());
    refused(
        &corner,
        &["--rm", "--name", "bad-dotdot", &reference, "true"],
        125,
        &[".."],
    );
    assert!(!corner.path("escaped").exists());
}

#[test]
fn layer_with_an_absolute_link_stays_inside() {
    let corner = Corner::new("bad-link");
    let python = "add('link', type=tarfile.SYMTYPE, linkname='/run/vmbox-test/bad-link')\nadd('link/escaped', b'x')";
    layout(&corner.path("oci"), &tar(&corner, python), None);
    let reference = format!("oci:{}:t", corner.path("oci").display());
    let done = corner.run(["--rm", "--name", "bad-link", &reference, "true"]);
    assert_ne!(done.code(), 0);
    assert!(
        !corner.path("escaped").exists(),
        "the layer wrote through its own link onto the host"
    );
}

#[test]
fn unknown_flag_says_which() {
    let corner = Corner::new("bad-flag");
    let done = corner.run(["--no-such-flag", &image()]);
    assert!(done.stderr.contains("--no-such-flag"), "{}", done.stderr);
    assert_ne!(done.code(), 0);
}

#[test]
fn check_says_yes_here() {
    let corner = Corner::new("check");
    Done::of(corner.vmbox(["check"]).output().unwrap()).exits(0);
}

#[test]
fn a_directory_image_is_not_written_to() {
    let corner = Corner::new("dir-image");
    let image = format!("dir:{}", rootfs().display());
    let out = Done::of(
        corner
            .vmbox([
                "run",
                "--rm",
                &image,
                "sh",
                "-c",
                "echo x > /made-by-the-test && cat /made-by-the-test",
            ])
            .output()
            .unwrap(),
    );
    assert_eq!(out.exits(0), "x\n");
    assert!(!rootfs().join("made-by-the-test").exists());
    assert!(product().join("vmbox").exists());
}
