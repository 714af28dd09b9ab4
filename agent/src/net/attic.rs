//! Where NICs without a wire are: the network namespace that the kernel came up in, and that no process is in any more.
//!
//! The pod has the other one, not the other way round: the kernel takes three ticks of its clock to move a NIC
//! (`rcu_barrier` in net/core/dev.c), and a pod has more slots than interfaces.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use nix::sched::{CloneFlags, unshare};

use super::Mac;
use super::rtnetlink::{Link, Rtnetlink};

/// Both namespaces.
#[derive(Debug)]
pub struct Attic {
    namespace: File,
    inside: Rtnetlink,
    pod: File,
}

impl Attic {
    /// Leaves the NICs of the slots behind, if there are any, for an empty namespace, which is the pod's. By a process that
    /// has one thread, with /proc mounted, but not yet sysfs: that shows the namespace in which it was mounted.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn leave_behind() -> io::Result<Option<Self>> {
        let mut inside = Rtnetlink::open()?;
        if !inside.links()?.iter().any(Link::is_slot) {
            return Ok(None);
        }
        let namespace = File::open("/proc/self/ns/net")?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let pod = File::open("/proc/self/ns/net")?;
        Ok(Some(Self {
            namespace,
            inside,
            pod,
        }))
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
