//! Writes an OCI image layout with one layer (OCI image-spec, image-layout.md).

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::arch::Arch;
use crate::workspace::make_dir;

/// Changes when the layout does, so that cached ones are made anew.
pub const VERSION: &str = "layout 1";

/// Makes `dir` a layout whose only layer is the tar file `layer`, which is moved there.
///
/// The layer isn't compressed: unpacking it is part of many tests, and gzip is slow under emulation.
pub fn write(dir: &Path, arch: Arch, tag: &str, layer: &Path) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    make_dir(&blobs)?;
    let (layer_digest, size) = digest_of(layer)?;
    fs::rename(layer, blobs.join(&layer_digest)).context("move the layer")?;

    let config = json!({
        "architecture": arch.debian(),
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "Cmd": ["sh"],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    });
    let config = blob(&blobs, "application/vnd.oci.image.config.v1+json", &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": format!("sha256:{layer_digest}"),
            "size": size,
        }],
    });
    let mut manifest = blob(
        &blobs,
        "application/vnd.oci.image.manifest.v1+json",
        &manifest,
    )?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(())
}

/// Stores a document and returns its descriptor.
fn blob(blobs: &Path, media_type: &str, document: &Value) -> Result<Value> {
    let bytes = serde_json::to_vec(document)?;
    let digest = hex(&Sha256::digest(&bytes));
    fs::write(blobs.join(&digest), &bytes)?;
    Ok(
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() }),
    )
}

/// The digest of a file, in hexadecimal, and its length in bytes.
fn digest_of(path: &Path) -> io::Result<(String, u64)> {
    let mut content = BufReader::with_capacity(1 << 20, File::open(path)?);
    let (mut hash, mut size) = (Sha256::new(), 0);
    loop {
        let chunk = content.fill_buf()?;
        if chunk.is_empty() {
            return Ok((hex(&hash.finalize()), size));
        }
        hash.update(chunk);
        let length = chunk.len();
        size += length as u64;
        content.consume(length);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_descriptor_names_a_blob_of_its_size_and_digest() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer.tar");
        fs::write(&layer, b"the layer").unwrap();
        let layout = dir.path().join("oci");
        write(&layout, Arch::Aarch64, "tag", &layer).unwrap();
        let read = |digest: &Value| {
            let name = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = fs::read(layout.join("blobs/sha256").join(name)).unwrap();
            assert_eq!(hex(&Sha256::digest(&bytes)), name);
            bytes
        };
        let index: Value =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let descriptor = &index["manifests"][0];
        assert_eq!(
            descriptor["annotations"]["org.opencontainers.image.ref.name"],
            "tag"
        );
        let manifest = read(&descriptor["digest"]);
        assert_eq!(descriptor["size"], manifest.len());
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(
            manifest["config"]["size"],
            read(&manifest["config"]["digest"]).len()
        );
        assert_eq!(read(&manifest["layers"][0]["digest"]), b"the layer");
    }
}
