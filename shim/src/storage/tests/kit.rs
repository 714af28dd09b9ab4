//! Builds tars, layers and images as byte strings, and compares trees.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::storage::digest::Digest;
use crate::storage::lower::LowerView;
use crate::storage::member::Members;
use crate::storage::unpack::{UnpackError, Unpacked, unpack};

/// A tar that is being written, with whatever names one likes.
#[derive(Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    pub fn header(kind: EntryType, name: &[u8], link: &[u8], mode: u32, size: u64) -> Header {
        let mut header = Header::new_gnu();
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len().min(100)].copy_from_slice(&name[..name.len().min(100)]);
        gnu.linkname[..link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header
    }

    pub fn raw(mut self, header: Header, data: &[u8]) -> Self {
        let mut header = header;
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(self, name: &str, data: &[u8]) -> Self {
        self.raw(
            Self::header(
                EntryType::Regular,
                name.as_bytes(),
                b"",
                0o644,
                data.len() as u64,
            ),
            data,
        )
    }

    pub fn dir(self, name: &str, mode: u32) -> Self {
        self.raw(
            Self::header(EntryType::Directory, name.as_bytes(), b"", mode, 0),
            b"",
        )
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.raw(
            Self::header(
                EntryType::Symlink,
                name.as_bytes(),
                target.as_bytes(),
                0o777,
                0,
            ),
            b"",
        )
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.raw(
            Self::header(
                EntryType::Link,
                name.as_bytes(),
                target.as_bytes(),
                0o644,
                0,
            ),
            b"",
        )
    }

    /// Records for the next member.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            data.extend(format!("{length} {key}=").as_bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.raw(
            Self::header(EntryType::XHeader, b"pax", b"", 0o644, data.len() as u64),
            &data,
        )
    }

    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }
}

/// Unpacks `tar` into the new directory `into` above `lower` (lowest first).
pub fn apply(tar: &[u8], into: &Path, lower: &[PathBuf]) -> Result<Unpacked, UnpackError> {
    fs::create_dir_all(into).unwrap();
    unpack(
        &mut Members::new(Cursor::new(tar)),
        into,
        &LowerView::open(lower).unwrap(),
    )
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

pub fn image_config(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::of(layer).to_string())
        .collect();
    json!({
        "architecture": crate::storage::manifest::machine_architecture(), "os": "linux",
        "config": {"Env": ["A=b"], "Cmd": ["/bin/true"], "User": "1000:50", "WorkingDir": "/srv", "StopSignal": "SIGINT"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// Writes an OCI layout whose layer blobs are `(uncompressed, blob)` and returns the names of the layer blobs.
pub fn layout(dir: &Path, tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<PathBuf> {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let plain: Vec<Vec<u8>> = layers.iter().map(|(plain, _)| plain.clone()).collect();
    let config = blob(
        "application/vnd.oci.image.config.v1+json",
        image_config(&plain).to_string().as_bytes(),
    );
    let blobs: Vec<Value> = layers
        .iter()
        .map(|(_, bytes)| blob("application/vnd.oci.image.layer.v1.tar+gzip", bytes))
        .collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": blobs});
    let mut entry = blob(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
    fs::write(
        dir.join("index.json"),
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
    )
    .unwrap();
    layers
        .iter()
        .map(|(_, bytes)| dir.join("blobs/sha256").join(Digest::of(bytes).hex()))
        .collect()
}

/// Every path below `root` with type, mode, owner, time, length, link target and content digest.
pub fn inventory(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_path_buf()];
    while let Some(path) = ahead.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let content = if stat.is_file() {
            Digest::of(&fs::read(&path).unwrap()).hex()
        } else {
            String::new()
        };
        let link = fs::read_link(&path)
            .map(|link| link.as_os_str().as_bytes().to_vec())
            .unwrap_or_default();
        let line = format!(
            "{:o} {}:{} {:?} {content} {link:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.rdev()
        );
        if stat.is_dir() {
            ahead.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        found.insert(path, line);
    }
    found
}

/// The error and all its sources on one line, as the command prints it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
