//! What ps(1) shows of a process, read from /proc (proc_pid_stat(5), proc_pid_status(5)).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// A process as the guest's root PID namespace sees it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Details {
    pub pid: u32,
    /// 0 for one whose parent is outside.
    pub ppid: u32,
    /// Effective user and group.
    pub uid: u32,
    pub gid: u32,
    /// Its id in its own PID namespace.
    pub namespace_pid: u32,
    /// Device number of the controlling terminal, 0 without one.
    pub tty: u32,
    pub start_unix_ms: i64,
    /// User and system time together.
    pub cpu: Duration,
    pub state: char,
    pub threads: u32,
    pub resident_bytes: u64,
    pub virtual_bytes: u64,
    pub nice: i32,
    /// At most 15 characters.
    pub name: String,
    /// None for a zombie.
    pub command: Vec<String>,
}

/// Units of the kernel's files.
#[derive(Debug, Clone, Copy)]
struct Units {
    ticks_per_second: u64,
    page_bytes: u64,
    /// When the machine booted, in seconds since 1970.
    boot_unix_s: i64,
}

impl Units {
    fn of_this_machine() -> Self {
        let setting = |name| {
            // SAFETY: sysconf takes an integer.
            u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(1)
        };
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = stat
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok());
        Self {
            ticks_per_second: setting(libc::_SC_CLK_TCK).max(1),
            page_bytes: setting(libc::_SC_PAGESIZE),
            boot_unix_s: boot.unwrap_or(0),
        }
    }
}

/// Details of these processes, without those that have ended meanwhile.
pub fn details(pids: &[u32]) -> Vec<Details> {
    let units = Units::of_this_machine();
    let each = |&pid: &u32| read(Path::new("/proc").join(pid.to_string()).as_path(), units);
    pids.iter().filter_map(each).collect()
}

fn read(directory: &Path, units: Units) -> Option<Details> {
    let owner = fs::metadata(directory).ok()?;
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let mut details = parse(&stat, units)?;
    // The directory's owner is root for a process that can't be traced, so it is only for where the file lacks the line.
    let id = |key: &str| field(&status, key).and_then(|mut ids| ids.nth(1)?.parse().ok());
    details.uid = id("Uid:").unwrap_or(owner.uid());
    details.gid = id("Gid:").unwrap_or(owner.gid());
    details.namespace_pid = field(&status, "NSpid:")
        .and_then(|ids| ids.last()?.parse().ok())
        .unwrap_or(details.pid);
    let command = fs::read(directory.join("cmdline")).unwrap_or_default();
    details.command = words(&command);
    Some(details)
}

fn field<'a>(status: &'a str, key: &str) -> Option<std::str::SplitWhitespace<'a>> {
    let line = status.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace())
}

fn words(command: &[u8]) -> Vec<String> {
    let command = command.strip_suffix(b"\0").unwrap_or(command);
    if command.is_empty() {
        return Vec::new();
    }
    let word = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    command.split(|&byte| byte == 0).map(word).collect()
}

/// `PID (NAME) STATE PPID …`; the name may hold anything, parentheses and spaces included.
fn parse(stat: &str, units: Units) -> Option<Details> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // Counted as in proc_pid_stat(5), where the state is the third.
    let number = |n: usize| {
        fields
            .get(n - 3)
            .and_then(|field| field.parse::<i64>().ok())
    };
    let unsigned = |n: usize| number(n).and_then(|value| u64::try_from(value).ok());
    let ticks = |ticks: u64| Duration::from_millis(ticks * 1000 / units.ticks_per_second);
    let since_boot = i64::try_from(ticks(unsigned(22)?).as_millis()).ok()?;
    Some(Details {
        pid: pid.parse().ok()?,
        ppid: u32::try_from(number(4)?).ok()?,
        // A dev_t that was printed as an int.
        tty: number(7)? as u32,
        start_unix_ms: units.boot_unix_s * 1000 + since_boot,
        cpu: ticks(unsigned(14)? + unsigned(15)?),
        state: fields.first()?.chars().next()?,
        threads: u32::try_from(number(20)?).ok()?,
        resident_bytes: unsigned(24)? * units.page_bytes,
        virtual_bytes: unsigned(23)?,
        nice: i32::try_from(number(19)?).ok()?,
        name: name.into(),
        ..Details::default()
    })
}

/// The name that ps gives a terminal: `pts/0`, `tty1`; empty for none and for one that it does not know.
pub fn tty_name(device: u32) -> String {
    // The kernel's new_encode_dev: minor in bits 0 to 7 and 20 to 31, major in between.
    let major = (device >> 8) & 0xfff;
    let minor = (device & 0xff) | ((device >> 12) & 0xf_ff00);
    match major {
        136..=143 => format!("pts/{}", minor + (major - 136) * 256),
        4 if minor < 64 => format!("tty{minor}"),
        4 => format!("ttyS{}", minor - 64),
        5 if minor == 1 => "console".into(),
        229 => format!("hvc{minor}"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNITS: Units = Units {
        ticks_per_second: 100,
        page_bytes: 4096,
        boot_unix_s: 1_000_000,
    };

    #[test]
    fn a_name_can_not_pass_for_fields() {
        let stat = "42 (a) R 1 (b)) S 7 42 42 34817 42 4194304 1 0 0 0 150 50 0 0 20 -5 3 0 1234 8192 2 18446744073709551615 0\n";
        let details = parse(stat, UNITS).unwrap();
        let expected = Details {
            pid: 42,
            ppid: 7,
            tty: 34817,
            start_unix_ms: 1_000_012_340,
            cpu: Duration::from_secs(2),
            state: 'S',
            threads: 3,
            resident_bytes: 8192,
            virtual_bytes: 8192,
            nice: -5,
            name: "a) R 1 (b)".into(),
            ..Details::default()
        };
        assert_eq!(details, expected);
        assert_eq!(tty_name(details.tty), "pts/1");
    }

    #[test]
    fn terminals_have_the_names_that_ps_gives_them() {
        let names = [0, (4 << 8) | 1, (4 << 8) | 64, (5 << 8) | 1, (137 << 8) | 2];
        assert_eq!(
            names.map(tty_name),
            ["", "tty1", "ttyS0", "console", "pts/258"]
        );
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let own = std::process::id();
        // A pid that the kernel never gives is left out.
        let seen = details(&[own, u32::MAX]);
        assert_eq!(seen.len(), 1);
        let user = nix::unistd::geteuid().as_raw();
        assert_eq!((seen[0].pid, seen[0].uid), (own, user));
        let args: Vec<String> = std::env::args().collect();
        assert_eq!(seen[0].command, args);
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        let age = now.as_millis() as i64 - seen[0].start_unix_ms;
        assert!((-2000..600_000).contains(&age), "{age} ms old");
    }
}
