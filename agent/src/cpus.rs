//! Which of the machine's CPUs are online (Linux Documentation/core-api/cpu_hotplug.rst).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Where the kernel has them.
pub const CPUS: &str = "/sys/devices/system/cpu";

/// Why the number of CPUs could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    #[error("the guest has {has} CPUs, not {wanted}")]
    TooFew { has: u32, wanted: u32 },
    #[error("bring CPU {cpu} {}: {source}", if *.online { "up" } else { "down" })]
    Refused {
        cpu: u32,
        online: bool,
        source: io::Error,
    },
}

/// Brings the first `wanted` CPUs up and the others down. CPU 0 is always up.
///
/// # Errors
/// There are not so many, or the kernel refuses; what has changed by then stays.
pub fn set_online(cpus: &Path, wanted: u32) -> Result<(), CpuError> {
    let of = |cpu: u32| cpus.join(format!("cpu{cpu}"));
    let has = (0..).take_while(|cpu| of(*cpu).is_dir()).count() as u32;
    if wanted > has {
        return Err(CpuError::TooFew { has, wanted });
    }
    (1..has).try_for_each(|cpu| {
        let online = cpu < wanted;
        set(of(cpu).join("online"), online).map_err(|source| CpuError::Refused {
            cpu,
            online,
            source,
        })
    })
}

fn set(file: PathBuf, online: bool) -> io::Result<()> {
    let wanted = if online { "1" } else { "0" };
    if fs::read_to_string(&file)?.trim() == wanted {
        return Ok(());
    }
    fs::write(file, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(states: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("cpu0")).unwrap();
        for (cpu, state) in (1..).zip(states) {
            let dir = root.path().join(format!("cpu{cpu}"));
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("online"), state).unwrap();
        }
        root
    }

    fn states(root: &tempfile::TempDir, count: u32) -> String {
        let state = |cpu| fs::read_to_string(root.path().join(format!("cpu{cpu}/online"))).unwrap();
        (1..=count).map(state).collect()
    }

    #[test]
    fn the_first_cpus_are_online_and_the_others_are_not() {
        let root = machine(&["0\n", "0", "1"]);
        set_online(root.path(), 3).unwrap();
        assert_eq!(states(&root, 3), "110");
        set_online(root.path(), 1).unwrap();
        assert_eq!(states(&root, 3), "000");
    }

    #[test]
    fn more_than_there_are_is_refused() {
        let root = machine(&["0"]);
        let message = set_online(root.path(), 3).unwrap_err().to_string();
        assert_eq!(message, "the guest has 2 CPUs, not 3");
        assert_eq!(states(&root, 1), "0");
    }
}
