//! Finds `vmbox-vmm`, the guest kernel and the guest image: as asked, by environment, beside this program, then in
//! `/usr/lib/vmbox`.

use std::{
    env,
    path::{Path, PathBuf},
};

/// Where packages put them.
const PACKAGE_DIR: &str = "/usr/lib/vmbox";

/// The three files that a VM is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assets {
    /// The monitor.
    pub vmm: PathBuf,
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The guest image.
    pub image: PathBuf,
}

/// Files named on the command line.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--kernel`.
    pub kernel: Option<PathBuf>,
    /// `--initrd`.
    pub image: Option<PathBuf>,
}

/// A file is missing.
#[derive(Debug, thiserror::Error)]
pub enum AssetError {
    /// The one that was asked for.
    #[error("{what}: {path} is not a file")]
    NotThere {
        /// What it was for.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
    /// None of the usual places has it.
    #[error(
        "{what} not found: looked for {names} beside {beside} and in {PACKAGE_DIR}; {variable} can name it"
    )]
    NotFound {
        /// What it is for.
        what: &'static str,
        /// Its file name, or what it may be called.
        names: String,
        /// The directory of this program.
        beside: PathBuf,
        /// The environment variable that would override.
        variable: &'static str,
    },
}

struct Wanted {
    what: &'static str,
    names: &'static [&'static str],
    variable: &'static str,
}

const VMM: Wanted = Wanted {
    what: "the monitor",
    names: &["vmbox-vmm"],
    variable: "VMBOX_VMM",
};
const KERNEL: Wanted = Wanted {
    what: "the guest kernel",
    // What Linux itself calls it on x86_64, and on aarch64. One that is of the other's form is refused by the monitor.
    names: &["vmlinux", "Image"],
    variable: "VMBOX_KERNEL",
};
const IMAGE: Wanted = Wanted {
    what: "the guest image",
    names: &["guest.cpio"],
    variable: "VMBOX_IMAGE",
};

impl Assets {
    /// Finds all three.
    ///
    /// # Errors
    /// The first that is missing.
    pub fn find(overrides: &Overrides) -> Result<Self, AssetError> {
        let beside = env::current_exe()
            .ok()
            .and_then(|program| program.parent().map(Path::to_owned))
            .unwrap_or_default();
        let variable = |wanted: &Wanted| env::var_os(wanted.variable).map(PathBuf::from);
        Ok(Self {
            vmm: choose(&VMM, variable(&VMM), &beside)?,
            kernel: choose(
                &KERNEL,
                overrides.kernel.clone().or_else(|| variable(&KERNEL)),
                &beside,
            )?,
            image: choose(
                &IMAGE,
                overrides.image.clone().or_else(|| variable(&IMAGE)),
                &beside,
            )?,
        })
    }
}

fn choose(wanted: &Wanted, named: Option<PathBuf>, beside: &Path) -> Result<PathBuf, AssetError> {
    if let Some(path) = named {
        // Absolute, because the pod's mount namespace may change the working directory.
        let path = std::path::absolute(&path).unwrap_or(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(AssetError::NotThere {
                what: wanted.what,
                path,
            })
        };
    }
    [beside, Path::new(PACKAGE_DIR)]
        .iter()
        .flat_map(|dir| wanted.names.iter().map(|name| dir.join(name)))
        .find(|path| path.is_file())
        .ok_or_else(|| AssetError::NotFound {
            what: wanted.what,
            names: wanted.names.join(" or "),
            beside: beside.to_owned(),
            variable: wanted.variable,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_file_must_be_there() {
        let error = choose(&KERNEL, Some("/does/not/exist".into()), Path::new("/")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the guest kernel: /does/not/exist is not a file"
        );
    }

    #[test]
    fn the_file_beside_the_program_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["Image", "vmlinux"] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            assert_eq!(choose(&KERNEL, None, dir.path()).unwrap(), path);
        }
    }

    #[test]
    fn the_message_names_the_places() {
        let dir = tempfile::tempdir().unwrap();
        let message = choose(&KERNEL, None, dir.path()).unwrap_err().to_string();
        assert!(
            message.contains("VMBOX_KERNEL") && message.contains(PACKAGE_DIR),
            "{message}"
        );
    }
}
