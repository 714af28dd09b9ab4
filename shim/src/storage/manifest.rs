//! From the index of an image source to one image's configuration and list of layers (OCI image-spec, docker save).

use std::str::FromStr;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::digest::Digest;
use super::error::ImageError;
use super::source::Source;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";
/// Indexes in indexes that are followed.
const DEPTH_LIMIT: usize = 4;

/// One image, its layers lowest first.
pub struct Manifest {
    pub config: ImageConfiguration,
    pub layers: Vec<LayerBlob>,
}

/// A layer and where its bytes are.
#[derive(Clone, Debug)]
pub struct LayerBlob {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Name in the [`Source`].
    pub name: String,
    /// Digest and length of the blob as it is, where the source states them.
    pub blob: Option<(Digest, u64)>,
}

/// One element of docker save's manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image called `tag`, or the only one for this machine's architecture.
pub fn find(source: &Source, tag: Option<&str>) -> Result<Manifest, ImageError> {
    let manifest = if source.has("index.json") {
        oci(source, tag)?
    } else if source.has("manifest.json") {
        saved(source, tag)?
    } else {
        return Err(ImageError::NoIndex);
    };
    let (os, architecture) = (
        manifest.config.os().to_string(),
        manifest.config.architecture().to_string(),
    );
    if os != "linux" || architecture != machine_architecture() {
        let wanted = format!("linux/{}", machine_architecture());
        return Err(ImageError::Platform {
            found: format!("{os}/{architecture}"),
            wanted,
        });
    }
    if manifest.layers.is_empty() {
        return Err(ImageError::NoLayers);
    }
    Ok(manifest)
}

/// This machine's architecture under GOARCH's name.
pub fn machine_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn oci(source: &Source, tag: Option<&str>) -> Result<Manifest, ImageError> {
    let index: ImageIndex = json("index.json", &source.document("index.json", None)?)?;
    let mut chosen = choose_tag(index.manifests(), tag)?.clone();
    for _ in 0..DEPTH_LIMIT {
        let (digest, name) = blob_name(&chosen)?;
        let document = source.document(&name, Some(digest))?;
        let is_index = match chosen.media_type() {
            MediaType::ImageIndex => true,
            MediaType::Other(other) => {
                other == "application/vnd.docker.distribution.manifest.list.v2+json"
            }
            _ => false,
        };
        if !is_index {
            return oci_manifest(source, &name, &document);
        }
        let index: ImageIndex = json(&name, &document)?;
        chosen = choose_platform(index.manifests())?.clone();
    }
    Err(ImageError::NotImage(
        "its index is nested too deeply".into(),
    ))
}

fn oci_manifest(source: &Source, name: &str, document: &[u8]) -> Result<Manifest, ImageError> {
    let manifest: ImageManifest = json(name, document)?;
    match manifest.config().media_type() {
        MediaType::ImageConfig => {}
        MediaType::Other(other) if other == "application/vnd.docker.container.image.v1+json" => {}
        other => {
            return Err(ImageError::NotImage(format!(
                "its configuration is of type {other}"
            )));
        }
    }
    let (digest, config_name) = blob_name(manifest.config())?;
    let config: ImageConfiguration =
        json(&config_name, &source.document(&config_name, Some(digest))?)?;
    let diff_ids = diff_ids(&config, manifest.layers().len())?;
    let layers = manifest
        .layers()
        .iter()
        .zip(diff_ids)
        .map(|(layer, diff_id)| {
            let (digest, name) = blob_name(layer)?;
            Ok(LayerBlob {
                diff_id,
                name,
                blob: Some((digest, layer.size())),
            })
        });
    Ok(Manifest {
        layers: layers.collect::<Result<_, ImageError>>()?,
        config,
    })
}

fn saved(source: &Source, tag: Option<&str>) -> Result<Manifest, ImageError> {
    let images: Vec<Saved> = json("manifest.json", &source.document("manifest.json", None)?)?;
    let tags = |saved: &Saved| saved.repo_tags.clone().unwrap_or_default();
    let known = || images.iter().flat_map(tags).collect::<Vec<_>>().join(", ");
    let image = match (tag, images.as_slice()) {
        (None, [image]) => image,
        (None, _) => return Err(ImageError::Ambiguous { known: known() }),
        (Some(tag), images) => {
            let found = images
                .iter()
                .find(|image| tags(image).iter().any(|name| names(name, tag)));
            found.ok_or_else(|| ImageError::NoTag {
                tag: tag.into(),
                known: known(),
            })?
        }
    };
    // docker save names the configuration by its digest.
    let stem = image.config.strip_suffix(".json").unwrap_or(&image.config);
    let digest = Digest::from_str(&format!(
        "sha256:{}",
        stem.rsplit('/').next().unwrap_or_default()
    ))
    .ok();
    let config: ImageConfiguration = json(&image.config, &source.document(&image.config, digest)?)?;
    let diff_ids = diff_ids(&config, image.layers.len())?;
    let layers = image.layers.iter().zip(diff_ids);
    let layers = layers
        .map(|(name, diff_id)| LayerBlob {
            diff_id,
            name: name.clone(),
            blob: None,
        })
        .collect();
    Ok(Manifest { layers, config })
}

fn choose_tag<'a>(
    manifests: &'a [Descriptor],
    tag: Option<&str>,
) -> Result<&'a Descriptor, ImageError> {
    let tags = |descriptor: &Descriptor| -> Vec<String> {
        let annotations = descriptor.annotations().as_ref();
        let value = |key| {
            annotations
                .and_then(|annotations| annotations.get(key))
                .cloned()
        };
        [value(REF_NAME), value(FULL_NAME)]
            .into_iter()
            .flatten()
            .collect()
    };
    let known = || {
        manifests
            .iter()
            .flat_map(tags)
            .collect::<Vec<_>>()
            .join(", ")
    };
    match (tag, manifests) {
        (None, [only]) => Ok(only),
        (None, _) => {
            // Several images are told apart by tags, several platforms of one image by their platform.
            let untagged = manifests.iter().all(|manifest| tags(manifest).is_empty());
            if untagged {
                choose_platform(manifests)
            } else {
                Err(ImageError::Ambiguous { known: known() })
            }
        }
        (Some(tag), _) => {
            let tagged: Vec<&Descriptor> = manifests
                .iter()
                .filter(|manifest| tags(manifest).iter().any(|name| names(name, tag)))
                .collect();
            match tagged.as_slice() {
                [] => Err(ImageError::NoTag {
                    tag: tag.into(),
                    known: known(),
                }),
                [only] => Ok(only),
                several => several
                    .iter()
                    .copied()
                    .find(|one| fits(one))
                    .ok_or_else(|| no_platform(manifests)),
            }
        }
    }
}

/// Whether an image's full name is meant by what the user wrote: all of it or just the tag.
fn names(name: &str, tag: &str) -> bool {
    name == tag
        || name
            .strip_suffix(tag)
            .is_some_and(|before| before.ends_with(':') || before.ends_with('/'))
}

fn choose_platform(manifests: &[Descriptor]) -> Result<&Descriptor, ImageError> {
    manifests
        .iter()
        .find(|manifest| fits(manifest))
        .ok_or_else(|| no_platform(manifests))
}

fn fits(manifest: &Descriptor) -> bool {
    let platform = manifest.platform().as_ref();
    platform.is_some_and(|p| {
        p.os().to_string() == "linux" && p.architecture().to_string() == machine_architecture()
    })
}

fn no_platform(manifests: &[Descriptor]) -> ImageError {
    let platforms = manifests
        .iter()
        .filter_map(|manifest| manifest.platform().as_ref());
    let found: Vec<String> = platforms
        .map(|p| format!("{}/{}", p.os(), p.architecture()))
        .collect();
    ImageError::Platform {
        found: found.join(", "),
        wanted: format!("linux/{}", machine_architecture()),
    }
}

fn diff_ids(config: &ImageConfiguration, layers: usize) -> Result<Vec<Digest>, ImageError> {
    let ids = config.rootfs().diff_ids();
    if ids.len() != layers {
        return Err(ImageError::LayerCount {
            manifest: layers,
            config: ids.len(),
        });
    }
    ids.iter()
        .map(|id| Digest::from_str(id).map_err(ImageError::BadDigest))
        .collect()
}

fn blob_name(descriptor: &Descriptor) -> Result<(Digest, String), ImageError> {
    let digest = Digest::from_str(descriptor.digest().as_ref()).map_err(ImageError::BadDigest)?;
    Ok((digest, format!("blobs/sha256/{}", digest.hex())))
}

fn json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Json {
        what: what.into(),
        source,
    })
}
