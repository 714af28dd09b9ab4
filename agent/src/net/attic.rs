//! Where NICs without a wire are: a network namespace that no process is in.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};

use super::Mac;
use super::rtnetlink::{Link, Rtnetlink};

/// The namespace, and the one that its links came from.
#[derive(Debug)]
pub struct Attic {
    namespace: File,
    inside: Rtnetlink,
    pod: File,
}

impl Attic {
    /// Makes an empty one, for links of the namespace of this thread.
    pub fn make() -> io::Result<Self> {
        let pod = File::open("/proc/thread-self/ns/net")?;
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            let namespace = File::open("/proc/thread-self/ns/net")?;
            Ok::<_, io::Error>((namespace, Rtnetlink::open()?))
        });
        let (namespace, inside) = made
            .join()
            .map_err(|_| io::Error::other("the thread panicked"))??;
        Ok(Self {
            namespace,
            inside,
            pod,
        })
    }

    /// Takes a link of the pod's. It loses its addresses and routes.
    pub fn take(&mut self, pod: &mut Rtnetlink, link: &Link) -> io::Result<()> {
        let name = format!("slot{}", link.slot_number().unwrap_or_default());
        pod.move_to(link.index, self.namespace.as_raw_fd(), &name)
    }

    /// Gives the link of this slot to the pod, if it is here.
    pub fn give(&mut self, slot: Mac) -> io::Result<()> {
        let links = self.inside.links()?;
        match links.iter().find(|link| link.permanent == Some(slot)) {
            Some(link) => {
                let name = format!("vmboxnew{}", link.slot_number().unwrap_or_default());
                self.inside.move_to(link.index, self.pod.as_raw_fd(), &name)
            }
            None => Ok(()),
        }
    }
}
