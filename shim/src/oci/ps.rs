//! `ps`: the processes of a container, as the guest has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vmbox_protocol::agent::ProcessDetails;

use super::{
    Context,
    args::{PsArgs, TableFormat},
    cgroup::{self, Cgroup},
    error::OciError,
    list,
    record::{Record, Status},
    store,
    verbs::ask,
};
use crate::{journal, pod::place::PodDir};

/// Prints them as runc does: for people, those of the guest.
///
/// # Errors
/// There is no such container, or ps(1) options were given that a guest's processes can't be shown by.
pub fn ps(context: &Context, args: &PsArgs) -> Result<(), OciError> {
    let look = Look::of(&args.options)?;
    let record = store::look_up(&context.root, &args.id)?;
    let id = store::parse_id(&args.id)?;
    if args.format == TableFormat::Json {
        return list::line(&on_the_host(&record));
    }
    // One that has stopped has none left, which is no failure.
    if record.status() == Status::Stopped {
        return list::write(look.table(&[], SystemTime::now()));
    }
    let processes = ask(&record, "list the processes", async |agent| {
        agent.list_processes(&id).await
    })?;
    list::write(look.table(&processes.processes, SystemTime::now()))
}

/// For programs: engines look these ids up on the host, where those of a guest are somebody else's. So it is the keepers,
/// of the container and of what was executed in it; none once it has stopped.
fn on_the_host(record: &Record) -> Vec<u32> {
    if record.status() == Status::Stopped {
        return Vec::new();
    }
    let own = record.keeper.map(|keeper| keeper.pid);
    let dir = record.cgroup.as_ref().map(Cgroup::dir);
    let all = dir.as_deref().map(cgroup::processes);
    let of_pod = journal::processes_of(&PodDir::at(record.pod.clone()));
    let others = all.into_iter().flatten();
    let others = others.filter(|pid| Some(*pid) != own && !of_pod.contains(pid));
    own.into_iter().chain(others).collect()
}

/// Which columns, after the options of ps(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// `-e`
    Brief,
    /// `-ef`, runc's own choice
    Full,
    /// `x`
    Bsd,
}

impl Look {
    /// ps(1)'s options for all processes, `-f` and `x`: the others can't be told from what the agent knows.
    fn of(options: &[String]) -> Result<Self, OciError> {
        let mut look = match options {
            [] => Self::Full,
            _ => Self::Brief,
        };
        for option in options {
            for letter in option.trim_start_matches('-').chars() {
                match letter {
                    'e' | 'a' | 'A' => {}
                    'f' if option.starts_with('-') => look = Self::Full,
                    'x' => look = Self::Bsd,
                    _ => {
                        return Err(OciError::Refused(format!(
                            "ps {option}: a guest's processes are shown as `ps -e`, `-ef` and `ax` do only"
                        )));
                    }
                }
            }
        }
        Ok(look)
    }

    fn table(self, processes: &[ProcessDetails], now: SystemTime) -> String {
        let header = match self {
            Self::Brief => "    PID TTY          TIME CMD\n",
            Self::Full => "UID          PID    PPID  C STIME TTY          TIME CMD\n",
            Self::Bsd => "    PID TTY      STAT   TIME COMMAND\n",
        };
        let lines = processes.iter().map(|process| self.line(process, now));
        std::iter::once(header.to_owned()).chain(lines).collect()
    }

    fn line(self, process: &ProcessDetails, now: SystemTime) -> String {
        let command = match process.command.as_slice() {
            [] => format!("[{}]", process.name),
            words => words.join(" "),
        };
        let tty = match process.tty_name.as_str() {
            "" => "?",
            name => name,
        };
        let (pid, cpu) = (process.pid, process.cpu_ms);
        match self {
            Self::Brief => format!("{pid:>7} {tty:<8} {} {}\n", time(cpu), process.name),
            Self::Bsd => {
                let (minutes, seconds) = (cpu / 60_000, cpu / 1000 % 60);
                let state = &process.state;
                format!("{pid:>7} {tty:<8} {state:<4} {minutes:>3}:{seconds:02} {command}\n")
            }
            Self::Full => {
                let started = UNIX_EPOCH
                    + Duration::from_millis(
                        u64::try_from(process.start_unix_ms).unwrap_or_default(),
                    );
                let age = now.duration_since(started).unwrap_or_default();
                format!(
                    "{:<8} {pid:>7} {:>7} {:>2} {:>5} {tty:<8} {} {command}\n",
                    user(process.uid),
                    process.ppid,
                    share(cpu, age),
                    start(started, age),
                    time(cpu),
                )
            }
        }
    }
}

/// Users have names in the container, which nobody has read: root alone is the same everywhere.
fn user(uid: u32) -> String {
    match uid {
        0 => "root".into(),
        _ => uid.to_string(),
    }
}

/// Per cent of a CPU over its life, as ps(1) has it.
fn share(cpu_ms: u64, age: Duration) -> u64 {
    let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    (cpu_ms.saturating_mul(100) / age_ms.max(1)).min(99)
}

/// The time of day (UTC) in the first day, then the date.
fn start(started: SystemTime, age: Duration) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let text = humantime::format_rfc3339_seconds(started).to_string();
    let field = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    if age < Duration::from_secs(24 * 3600) {
        return field(11, 16).to_owned();
    }
    let month = field(5, 7).parse::<usize>().unwrap_or(1);
    let month = MONTHS.get(month.wrapping_sub(1)).unwrap_or(&"");
    format!("{month}{}", field(8, 10))
}

fn time(cpu_ms: u64) -> String {
    let seconds = cpu_ms / 1000;
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(options: &[&str]) -> Result<String, OciError> {
        let process = ProcessDetails {
            pid: 42,
            ppid: 1,
            start_unix_ms: 0,
            cpu_ms: 61_000,
            state: "S".into(),
            name: "sleep".into(),
            command: vec!["sleep".into(), "1000".into()],
            ..Default::default()
        };
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let now = UNIX_EPOCH + Duration::from_secs(3600);
        Ok(Look::of(&options)?.table(&[process], now))
    }

    #[test]
    fn lines_are_those_of_ps() {
        let full = "UID          PID    PPID  C STIME TTY          TIME CMD\n\
                    root          42       1  1 00:00 ?        00:01:01 sleep 1000\n";
        assert_eq!(shown(&[]).unwrap(), full);
        assert_eq!(shown(&["-ef"]).unwrap(), full);
        assert_eq!(
            shown(&["-e"]).unwrap(),
            "    PID TTY          TIME CMD\n     42 ?        00:01:01 sleep\n"
        );
        assert_eq!(
            shown(&["-e", "-x"]).unwrap(),
            "    PID TTY      STAT   TIME COMMAND\n     42 ?        S      1:01 sleep 1000\n"
        );
    }

    #[test]
    fn options_that_cannot_be_honoured_are_refused() {
        assert!(shown(&["-o", "pid"]).is_err());
        assert!(shown(&["f"]).is_err());
    }

    #[test]
    fn an_old_process_has_a_date() {
        let start = start(UNIX_EPOCH, Duration::from_secs(48 * 3600));
        assert_eq!(start, "Jan01");
    }
}
