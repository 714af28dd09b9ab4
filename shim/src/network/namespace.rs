//! The network namespace of a pod: which one a spec asks for, and doing things in it.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::thread::LinkNameSpaceType;
use serde::{Deserialize, Serialize};

use super::NetworkError;

/// What a spec says about the network (`config-linux.md#namespaces`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The runtime's own namespace: that of the host.
    Host,
    /// A new one.
    New,
    /// This one.
    At(PathBuf),
}

/// Reads it.
pub fn wanted(spec: &Spec) -> Wanted {
    let linux = spec.linux().as_ref();
    let mut namespaces = linux
        .into_iter()
        .flat_map(|linux| linux.namespaces().iter().flatten());
    let network = namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    match network.map(|namespace| namespace.path()) {
        None => Wanted::Host,
        Some(None) => Wanted::New,
        Some(Some(path)) => Wanted::At(path.clone()),
    }
}

/// Tells a namespace from every other that exists at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Device number of the file that names it.
    pub device: u64,
    /// Inode number of that file.
    pub inode: u64,
}

/// An open network namespace: it exists as long as this does.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
    id: NamespaceId,
}

impl Namespace {
    /// Opens the namespace at `path`: a file of `ip netns`, or a `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// There is none, or it is the host's own.
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let failed = |source| NetworkError::Namespace {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        let id = id_of(&file.metadata().map_err(failed)?);
        // Ours, where the first process is out of reach.
        let host = fs::metadata("/proc/1/ns/net").or_else(|_| fs::metadata("/proc/self/ns/net"));
        if host.is_ok_and(|host| id_of(&host) == id) {
            return Err(NetworkError::Host);
        }
        let namespace = Self {
            path: path.to_owned(),
            file,
            id,
        };
        // A file that is no network namespace is found out here, before anything is made.
        namespace.enter(|| Ok(())).map_err(failed)?;
        Ok(namespace)
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which one it is.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// Does something in it, on a thread of its own. Sockets and taps that are made there stay of this namespace.
    ///
    /// # Errors
    /// It is no network namespace, or what was done failed.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let inside = || {
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(self.file.as_fd(), kind)?;
            f()
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, inside)?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
        })
    }
}

fn id_of(metadata: &fs::Metadata) -> NamespaceId {
    NamespaceId {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(namespaces: &str) -> Spec {
        let text = format!(r#"{{"ociVersion":"1.2.0","linux":{{"namespaces":{namespaces}}}}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_spec_asks_for_the_host_a_new_or_a_named_namespace() {
        assert_eq!(wanted(&spec(r#"[{"type":"pid"}]"#)), Wanted::Host);
        assert_eq!(wanted(&spec(r#"[{"type":"network"}]"#)), Wanted::New);
        let named = r#"[{"type":"network","path":"/run/netns/x"}]"#;
        assert_eq!(wanted(&spec(named)), Wanted::At("/run/netns/x".into()));
    }

    #[test]
    fn the_hosts_namespace_is_refused_by_name() {
        let error = Namespace::open(Path::new("/proc/self/ns/net")).unwrap_err();
        assert!(error.to_string().starts_with("host network: "), "{error}");
    }

    #[test]
    fn what_is_no_network_namespace_is_refused() {
        for path in ["/no/such/file", "/dev/null"] {
            let error = Namespace::open(Path::new(path)).unwrap_err();
            assert!(error.to_string().contains(path), "{error}");
        }
    }
}
