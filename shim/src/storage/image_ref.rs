//! What a user may write as IMAGE, parsed once.

use std::path::{Path, PathBuf};

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageRef {
    /// A directory in OCI image layout (OCI image-spec image-layout.md).
    Layout { dir: PathBuf, tag: Option<String> },
    /// A file written by `docker save`, or an OCI layout in a tar; perhaps compressed.
    Archive { file: PathBuf, tag: Option<String> },
    /// A root file system, used where it is.
    RootDir(PathBuf),
}

/// Why a text names no image. Each says what to do.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageRefError {
    #[error(
        "the image reference is empty: write oci:DIR[:TAG], the path of an image archive, or dir:DIR"
    )]
    Empty,
    #[error("{0:?} doesn't exist: {1} needs the path of an existing directory")]
    NoDirectory(PathBuf, &'static str),
    #[error("{0:?} is not a directory")]
    NotDirectory(PathBuf),
    #[error(
        "{0:?} is no OCI image layout: it has no file oci-layout (for a root file system, write dir:{1})"
    )]
    NotLayout(PathBuf, String),
    #[error(
        "{0:?} is a directory: write oci:{1} for an OCI image layout or dir:{1} for a root file system"
    )]
    IsDirectory(PathBuf, String),
    #[error("{0:?} is neither a regular file nor a directory")]
    NotFile(PathBuf),
    #[error(
        "there is no image archive {0:?}, and vmbox doesn't pull images from registries: \
         save it with `docker save -o FILE IMAGE` or `skopeo copy docker://IMAGE oci:DIR` and run that"
    )]
    NoArchive(String),
}

impl ImageRef {
    /// Parses `oci:DIR[:TAG]`, `dir:DIR` or `FILE[:TAG]`.
    ///
    /// A colon belongs to the path as long as such a path exists, so the longest existing path wins.
    pub fn parse(text: &str) -> Result<Self, ImageRefError> {
        if let Some(rest) = text.strip_prefix("dir:") {
            return root_dir(rest);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return layout(rest);
        }
        // skopeo's names for the same; the content tells which it is.
        let path = text
            .strip_prefix("docker-archive:")
            .or_else(|| text.strip_prefix("oci-archive:"))
            .unwrap_or(text);
        archive(path)
    }
}

fn root_dir(path: &str) -> Result<ImageRef, ImageRefError> {
    match metadata(path) {
        _ if path.is_empty() => Err(ImageRefError::Empty),
        None => Err(ImageRefError::NoDirectory(path.into(), "dir:")),
        Some(metadata) if !metadata.is_dir() => Err(ImageRefError::NotDirectory(path.into())),
        Some(_) => Ok(ImageRef::RootDir(path.into())),
    }
}

fn layout(text: &str) -> Result<ImageRef, ImageRefError> {
    let Some((dir, tag)) = existing_prefix(text) else {
        return Err(if text.is_empty() {
            ImageRefError::Empty
        } else {
            ImageRefError::NoDirectory(text.into(), "oci:")
        });
    };
    if !dir.is_dir() {
        return Err(ImageRefError::NotDirectory(dir));
    }
    if !dir.join("oci-layout").is_file() {
        let text = dir.display().to_string();
        return Err(ImageRefError::NotLayout(dir, text));
    }
    Ok(ImageRef::Layout { dir, tag })
}

fn archive(text: &str) -> Result<ImageRef, ImageRefError> {
    let Some((file, tag)) = existing_prefix(text) else {
        return Err(if text.is_empty() {
            ImageRefError::Empty
        } else {
            ImageRefError::NoArchive(text.into())
        });
    };
    match metadata(&file) {
        Some(metadata) if metadata.is_file() => Ok(ImageRef::Archive { file, tag }),
        Some(metadata) if metadata.is_dir() => {
            let text = file.display().to_string();
            Err(ImageRefError::IsDirectory(file, text))
        }
        _ => Err(ImageRefError::NotFile(file)),
    }
}

/// The longest part of `text` before a colon (or all of it) that exists, and what follows.
fn existing_prefix(text: &str) -> Option<(PathBuf, Option<String>)> {
    if !text.is_empty() && metadata(text).is_some() {
        return Some((text.into(), None));
    }
    let splits = text
        .rmatch_indices(':')
        .map(|(index, _)| (&text[..index], &text[index + 1..]));
    let mut existing = splits
        .filter(|(path, tag)| !path.is_empty() && !tag.is_empty() && metadata(path).is_some());
    existing
        .next()
        .map(|(path, tag)| (path.into(), Some(tag.into())))
}

fn metadata(path: impl AsRef<Path>) -> Option<std::fs::Metadata> {
    std::fs::metadata(path).ok()
}
