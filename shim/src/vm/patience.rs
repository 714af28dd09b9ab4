//! How long a guest may take to report: on a crowded host longer, as what it waits for processors does not count.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

/// A guest that has not reported by then hangs. Generous: emulated hosts boot slowly.
pub const BOOT: Duration = Duration::from_secs(120);
/// How often a guest that is late is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Resolves when the monitor `pid`, started just now, has had [`BOOT`] to bring its guest up.
pub async fn boot_is_overdue(pid: u32) {
    let tasks = format!("/proc/{pid}/task");
    has_had(BOOT, || longest_wait(Path::new(&tasks))).await;
}

async fn has_had(time: Duration, waited: impl Fn() -> Duration) {
    let start = Instant::now();
    loop {
        let had = start.elapsed().saturating_sub(waited());
        let left = time.saturating_sub(had);
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.max(LOOK.min(time))).await;
    }
}

/// Of a process' threads, how long that which waited longest was ready to run and did not. Zero where the kernel doesn't
/// count that.
fn longest_wait(tasks: &Path) -> Duration {
    let tasks = fs::read_dir(tasks).into_iter().flatten().flatten();
    let waits = tasks.filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        // sched-stats.rst, "/proc/<pid>/schedstat": time on a processor, time on a run queue (ns), how often it ran.
        let waited = text.split_whitespace().nth(1)?;
        waited.parse().ok().map(Duration::from_nanos)
    });
    waits.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiting_for_a_processor_does_not_count() {
        let (time, start) = (Duration::from_millis(100), Instant::now());
        has_had(time, || Duration::ZERO).await;
        assert!(start.elapsed() >= time);

        let (crowded, start) = (Duration::from_millis(300), Instant::now());
        has_had(time, || start.elapsed().min(crowded)).await;
        assert!(start.elapsed() >= crowded + time);
    }

    #[test]
    fn the_thread_that_waited_longest_decides() {
        let dir = tempfile::tempdir().unwrap();
        for (task, stat) in [("1", "9000 40 7\n"), ("2", "1 3000000 2\n"), ("3", "")] {
            fs::create_dir(dir.path().join(task)).unwrap();
            fs::write(dir.path().join(task).join("schedstat"), stat).unwrap();
        }
        assert_eq!(longest_wait(dir.path()), Duration::from_millis(3));
        assert_eq!(longest_wait(&dir.path().join("none")), Duration::ZERO);
    }
}
