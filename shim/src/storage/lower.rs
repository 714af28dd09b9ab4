//! Looks names up in layers that are not mounted, as overlayfs would show them.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;

use rustix::fs::{FileType, Stat, lgetxattr, readlinkat};

use super::beneath::{Dir, Root, is_whiteout, link_components};

const SYMLINK_LIMIT: usize = 40;

/// Unpacked layers seen as one tree.
pub struct LowerView {
    /// Topmost first.
    layers: Vec<Root>,
}

/// A file in some layer.
pub struct Found {
    /// Directory of the layer that it is in.
    pub parent: Dir,
    pub name: OsString,
    pub stat: Stat,
    /// Its name in the merged tree, with no symbolic link before the last component.
    pub path: Vec<OsString>,
}

enum Step {
    Found(Dir, OsString, Box<Stat>),
    /// This layer says nothing of it.
    Missing,
    /// This layer says that it doesn't exist.
    Hidden,
    /// The component of this index is a link to this.
    Link(usize, Vec<u8>),
}

impl LowerView {
    /// `layers` are lowest first.
    pub fn open(layers: &[PathBuf]) -> io::Result<Self> {
        Ok(Self {
            layers: layers
                .iter()
                .rev()
                .map(|layer| Root::open(layer))
                .collect::<io::Result<_>>()?,
        })
    }

    /// Finds `path`, following symbolic links in its parents but not the last component.
    pub fn find(&self, path: &[OsString]) -> io::Result<Option<Found>> {
        let mut path = path.to_vec();
        'links: for _ in 0..=SYMLINK_LIMIT {
            for layer in &self.layers {
                match look(layer, &path)? {
                    Step::Found(parent, name, stat) => {
                        return Ok(Some(Found {
                            parent,
                            name,
                            stat: *stat,
                            path,
                        }));
                    }
                    Step::Missing => {}
                    Step::Hidden => return Ok(None),
                    Step::Link(index, target) => {
                        path = through_link(&path, index, &target);
                        continue 'links;
                    }
                }
            }
            return Ok(None);
        }
        Err(rustix::io::Errno::LOOP.into())
    }
}

fn look(layer: &Root, path: &[OsString]) -> io::Result<Step> {
    let mut current = layer.dir();
    let Some((last, parents)) = path.split_last() else {
        return Ok(Step::Missing);
    };
    let mut opaque = false;
    let absent = |opaque| if opaque { Step::Hidden } else { Step::Missing };
    for (index, name) in parents.iter().enumerate() {
        let Some(stat) = current.stat(name)? else {
            return Ok(absent(opaque));
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                opaque |= is_opaque(&current, name);
                current = current.open_dir(name)?;
            }
            FileType::Symlink => {
                return Ok(Step::Link(
                    index,
                    readlinkat(&current, &**name, Vec::new())?.into_bytes(),
                ));
            }
            _ => return Ok(Step::Hidden),
        }
    }
    Ok(match current.stat(last)? {
        None => absent(opaque),
        Some(stat) if is_whiteout(&stat) => Step::Hidden,
        Some(stat) => Step::Found(current, last.clone(), Box::new(stat)),
    })
}

fn is_opaque(dir: &Dir, name: &OsStr) -> bool {
    let mut value = [0; 2];
    matches!(lgetxattr(dir.proc_path(name), super::OPAQUE_XATTR, &mut value), Ok(1) if value[0] == b'y')
}

fn through_link(path: &[OsString], index: usize, target: &[u8]) -> Vec<OsString> {
    let before = if target.starts_with(b"/") {
        &[]
    } else {
        path.get(..index).unwrap_or_default()
    };
    let mut resolved = before.to_vec();
    for name in link_components(target)
        .into_iter()
        .chain(path.iter().skip(index + 1).cloned())
    {
        if name == ".." {
            resolved.pop();
        } else {
            resolved.push(name);
        }
    }
    resolved
}
