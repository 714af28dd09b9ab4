//! `ps`: the processes of a container, as the guest has them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;
use vmbox_protocol::agent::ProcessDetails;

use super::{
    Context,
    args::{PsArgs, TableFormat},
    cgroup,
    error::OciError,
    list,
    record::{Record, Status},
    store,
    verbs::{self, ask},
};
use crate::{journal, pod::place::PodDir};

/// Prints them as runc does: for people, those of the guest.
///
/// # Errors
/// There is no such container, or ps(1) options were given that a guest's processes can't be shown by.
pub fn ps(context: &Context, args: &PsArgs) -> Result<(), OciError> {
    let full = args.options.iter().all(|option| option == "-ef");
    if !full {
        return Err(OciError::Refused(format!(
            "ps {}: processes of a guest are shown as `ps -ef` does only",
            args.options.join(" ")
        )));
    }
    let record = store::look_up(&context.root, &args.id)?;
    let id = store::parse_id(&args.id)?;
    if args.format == TableFormat::Json {
        return verbs::print(&json!(on_the_host(&record)?));
    }
    let processes = ask(&record, "list the processes", async |agent| {
        agent.list_processes(&id).await
    })?;
    list::write(table(&processes.processes, SystemTime::now()))
}

/// For programs: engines look these ids up on the host, where those of a guest are somebody else's. So it is the keepers,
/// of the container and of what was executed in it.
///
/// # Errors
/// It has stopped.
fn on_the_host(record: &Record) -> Result<Vec<u32>, OciError> {
    if record.status() == Status::Stopped {
        return Err(OciError::NotRunning);
    }
    let own = record.keeper.map(|keeper| keeper.pid);
    let all = record.cgroup.as_deref().map(cgroup::processes);
    let of_pod = journal::processes_of(&PodDir::at(record.pod.clone()));
    let others = all.into_iter().flatten();
    let others = others.filter(|pid| Some(*pid) != own && !of_pod.contains(pid));
    Ok(own.into_iter().chain(others).collect())
}

fn table(processes: &[ProcessDetails], now: SystemTime) -> String {
    let mut text = "UID          PID    PPID  C STIME TTY          TIME CMD\n".to_owned();
    for process in processes {
        text += &line(process, now);
    }
    text
}

fn line(process: &ProcessDetails, now: SystemTime) -> String {
    let started = UNIX_EPOCH
        + Duration::from_millis(u64::try_from(process.start_unix_ms).unwrap_or_default());
    let age = now.duration_since(started).unwrap_or_default();
    let command = match process.command.as_slice() {
        [] => format!("[{}]", process.name),
        words => words.join(" "),
    };
    let tty = match process.tty_name.as_str() {
        "" => "?",
        name => name,
    };
    format!(
        "{:<8} {:>7} {:>7} {:>2} {:>5} {tty:<8} {} {command}\n",
        user(process.uid),
        process.pid,
        process.ppid,
        share(process.cpu_ms, age),
        start(started, age),
        time(process.cpu_ms),
    )
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

    #[test]
    fn lines_are_those_of_ps() {
        let process = ProcessDetails {
            pid: 42,
            ppid: 1,
            start_unix_ms: 0,
            cpu_ms: 61_000,
            command: vec!["sleep".into(), "1000".into()],
            ..Default::default()
        };
        let now = UNIX_EPOCH + Duration::from_secs(3600);
        assert_eq!(
            table(&[process], now),
            "UID          PID    PPID  C STIME TTY          TIME CMD\n\
             root          42       1  1 00:00 ?        00:01:01 sleep 1000\n"
        );
    }

    #[test]
    fn an_old_process_has_a_date() {
        let start = start(UNIX_EPOCH, Duration::from_secs(48 * 3600));
        assert_eq!(start, "Jan01");
    }
}
