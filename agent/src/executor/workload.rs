//! The last steps in the new process: find the program, say clearly when it can't be run, clean up, execve.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use libcontainer::oci_spec::runtime::{Process, Spec};
use libcontainer::syscall::syscall::create_syscall;
use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::errno::Errno;

use super::channel::send_on;
use super::start_hooks::StartHooks;
use super::{Failure, FailureKind, Report, confine};
use crate::spec::Confinement;

/// What runc assumes when a process has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The program and its environment.
type Found = (PathBuf, Vec<CString>);

/// libcontainer's hook for "run the program". Its own one asks for execute permission for everybody, refuses an environment
/// without PATH, loses the order of the environment, and reports a failed execve after start to nobody.
#[derive(Clone)]
pub struct Workload {
    report: RawFd,
    confinement: Confinement,
    hooks: StartHooks,
    found: Rc<RefCell<Option<Found>>>,
}

impl Workload {
    /// Reports on this descriptor, which must be close-on-exec.
    pub fn new(report: RawFd, confinement: Confinement, hooks: StartHooks) -> Self {
        Self {
            report,
            confinement,
            hooks,
            found: Rc::default(),
        }
    }

    fn tell(&self, failure: Failure) -> String {
        let message = failure.message.clone();
        // Nobody to tell: then the agent has seen the end of the channel instead.
        let _ = send_on(self.report, &Report::Failed(failure), &[]);
        message
    }

    /// Confines this process and finds its program, as the process itself would.
    fn prepare(&self, process: &Process) -> Result<Found, Failure> {
        confine::drop_privileges(&self.confinement, create_syscall().as_ref())?;
        let found = (find(process)?, environment(process));
        confine::filter_late(&self.confinement)?;
        Ok(found)
    }
}

impl Executor for Workload {
    /// libcontainer's last step before it says that the container is created: startContainer hooks are confined too.
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let Some(process) = spec.process() else {
            return Err(ExecutorValidationError::ArgValidationError(
                "no process".into(),
            ));
        };
        let found = self
            .prepare(process)
            .map_err(|failure| ExecutorValidationError::ArgValidationError(self.tell(failure)))?;
        *self.found.borrow_mut() = Some(found);
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // execve gets the environment that validate() has made.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (Some(process), Some((program, environment))) = (spec.process(), self.found.take())
        else {
            return Err(ExecutorError::InvalidArg);
        };
        let failure = match self.hooks.run(spec, &environment) {
            Ok(()) => execute(process, &program, &environment),
            Err(why) => Failure::other(why),
        };
        Err(ExecutorError::Other(self.tell(failure)))
    }
}

/// Finds the program of a process as the process itself would: in its PATH, with its permissions, from its cwd.
///
/// # Errors
/// In runc's words, which engines look for.
pub fn find(process: &Process) -> Result<PathBuf, Failure> {
    let name = process
        .args()
        .iter()
        .flatten()
        .next()
        .cloned()
        .unwrap_or_default();
    let not_found = |why: &str| Failure {
        kind: FailureKind::NotFound,
        message: format!("exec: {name:?}: {why}"),
    };
    let denied = || Failure {
        kind: FailureKind::PermissionDenied,
        message: format!("exec: {name:?}: permission denied"),
    };
    if name.contains('/') {
        let path = Path::new(&name);
        return match executable(path) {
            Ok(()) => Ok(path.into()),
            Err(Errno::EACCES) => Err(denied()),
            Err(errno) => Err(not_found(&format!("stat {name}: {}", runc_words(errno)))),
        };
    }
    let path = variable(process, "PATH").unwrap_or(DEFAULT_PATH);
    let mut seen_but_denied = false;
    for directory in path.split(':') {
        // An empty element is the current directory (POSIX, "PATH").
        let candidate = Path::new(if directory.is_empty() { "." } else { directory }).join(&name);
        match executable(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(errno) => seen_but_denied |= errno == Errno::EACCES && candidate.is_file(),
        }
    }
    if seen_but_denied {
        Err(denied())
    } else {
        Err(not_found("executable file not found in $PATH"))
    }
}

fn executable(path: &Path) -> Result<(), Errno> {
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    may_execute(&c_path)?;
    if path.is_dir() {
        Err(Errno::EACCES)
    } else {
        Ok(())
    }
}

/// Asks the kernel, perhaps under the container's seccomp filter: who may gain privileges has it already. Many profiles are
/// older than faccessat2(2), and answer it as they answer what they don't know. The older call asks for the real user, which
/// is the effective one here.
fn may_execute(path: &CStr) -> Result<(), Errno> {
    let (here, execute) = (libc::AT_FDCWD, libc::X_OK);
    // SAFETY: a NUL-terminated path that lives across the call.
    let result = unsafe { libc::faccessat(here, path.as_ptr(), execute, libc::AT_EACCESS) };
    match Errno::result(result) {
        Ok(_) => Ok(()),
        Err(errno) if is_a_file_systems(errno) => Err(errno),
        // SAFETY: as above. Not libc's function, which would make the newer call again.
        Err(_) => Errno::result(unsafe {
            libc::syscall(libc::SYS_faccessat, here, path.as_ptr(), execute)
        })
        .map(drop),
    }
}

/// Whether it is what a path and its permissions can answer to access(2), rather than a filter.
fn is_a_file_systems(errno: Errno) -> bool {
    use Errno::{EACCES, ELOOP, ENAMETOOLONG, ENOENT, ENOTDIR};
    matches!(errno, EACCES | ELOOP | ENAMETOOLONG | ENOENT | ENOTDIR)
}

/// The kernel's words as Go's programs write them.
pub(super) fn runc_words(errno: Errno) -> String {
    errno.desc().to_lowercase()
}

fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    process
        .env()
        .iter()
        .flatten()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The environment in the order of the spec, with HOME from /etc/passwd where it is missing, as runc does.
pub fn environment(process: &Process) -> Vec<CString> {
    let mut entries: Vec<String> = process.env().clone().unwrap_or_default();
    if variable(process, "HOME").is_none_or(str::is_empty) {
        entries.retain(|entry| !entry.starts_with("HOME="));
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        entries.push(format!("HOME={}", home(&passwd, process.user().uid())));
    }
    entries
        .into_iter()
        .filter_map(|entry| CString::new(entry).ok())
        .collect()
}

fn home(passwd: &str, uid: u32) -> &str {
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2).and_then(|f| f.parse().ok()) == Some(uid))
        .and_then(|fields| fields.get(5).copied())
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
}

/// Becomes the program; returns only when that fails.
pub fn execute(process: &Process, program: &Path, environment: &[CString]) -> Failure {
    make_null_writable();
    reset_signals();
    let args: Vec<CString> = process
        .args()
        .iter()
        .flatten()
        .filter_map(|word| CString::new(word.as_bytes()).ok())
        .collect();
    let Ok(path) = CString::new(program.as_os_str().as_bytes()) else {
        return Failure::other("exec: NUL in the path");
    };
    let Err(errno) = nix::unistd::execve(&path, &args, environment);
    let kind = match errno {
        // A script's or a dynamic program's interpreter.
        Errno::ENOENT | Errno::ENOTDIR => FailureKind::NotFound,
        Errno::EACCES | Errno::EPERM | Errno::ENOEXEC | Errno::EISDIR => {
            FailureKind::PermissionDenied
        }
        _ => FailureKind::Other,
    };
    Failure {
        kind,
        message: format!("exec {}: {}", program.display(), runc_words(errno)),
    }
}

/// libcontainer opens the container's /dev/null for reading only and puts it on stdout and stderr too.
fn make_null_writable() {
    let Ok(null) = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
    else {
        return;
    };
    let Ok(wanted) = nix::sys::stat::fstat(&null) else {
        return;
    };
    for fd in 0..3 {
        // SAFETY: the numbers 0 to 2 stay open: nothing in this process closes them.
        let current = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        if nix::sys::stat::fstat(current)
            .is_ok_and(|s| s.st_rdev == wanted.st_rdev && s.st_mode == wanted.st_mode)
        {
            // SAFETY: both are numbers of open descriptors; on failure the old one stays.
            unsafe { libc::dup2(null.as_raw_fd(), fd) };
        }
    }
}

/// Every signal as at boot: what this process ignores or blocks, its program would too.
fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is no code; numbers that can't be set are refused by the kernel.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

#[cfg(test)]
mod tests {
    use super::*;
    use libcontainer::oci_spec::runtime::ProcessBuilder;

    fn process(args: &[&str], env: &[&str]) -> Process {
        let owned = |words: &[&str]| words.iter().map(|&w| w.to_owned()).collect::<Vec<_>>();
        ProcessBuilder::default()
            .args(owned(args))
            .env(owned(env))
            .cwd("/")
            .build()
            .unwrap()
    }

    #[test]
    fn missing_program_is_127_in_runcs_words() {
        let failure = find(&process(&["no-such-thing"], &["PATH=/usr/bin:/bin"])).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert_eq!(
            failure.message,
            r#"exec: "no-such-thing": executable file not found in $PATH"#
        );
        let failure = find(&process(&["/no/such"], &[])).unwrap_err();
        assert_eq!(
            (failure.kind, failure.message.as_str()),
            (
                FailureKind::NotFound,
                r#"exec: "/no/such": stat /no/such: no such file or directory"#
            )
        );
    }

    #[test]
    fn what_is_no_program_is_126() {
        for name in ["/etc/passwd", "/etc"] {
            let failure = find(&process(&[name], &[])).unwrap_err();
            assert_eq!(failure.kind, FailureKind::PermissionDenied, "{name}");
        }
    }

    #[test]
    fn program_is_found_under_a_filter_that_is_older_than_faccessat2() {
        use super::super::seccomp;
        use libcontainer::oci_spec::runtime::LinuxSeccomp;
        let profile = |errno: u32| -> LinuxSeccomp {
            let call = serde_json::json!({
                "names": ["faccessat2"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno,
            });
            let profile =
                serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [call] });
            serde_json::from_value(profile).unwrap()
        };
        for errno in [libc::EPERM, libc::ENOSYS, libc::ENXIO] {
            let profile = profile(errno.cast_unsigned());
            // A filter is for the rest of a thread's life.
            let found = std::thread::spawn(move || {
                gain_no_privileges();
                seccomp::filter(&profile).unwrap();
                let missing = find(&process(&["/no/such"], &[])).unwrap_err();
                (find(&process(&["/bin/sh"], &[])).is_ok(), missing.kind)
            });
            let expected = (true, FailureKind::NotFound);
            assert_eq!(found.join().unwrap(), expected, "{errno}");
        }
    }

    /// Who gains none may filter its own calls.
    fn gain_no_privileges() {
        // SAFETY: prctl(PR_SET_NO_NEW_PRIVS) takes integers.
        let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        assert_eq!(result, 0);
    }

    #[test]
    fn default_path_is_used_without_one() {
        assert!(find(&process(&["sh"], &[])).is_ok());
        assert!(find(&process(&["sh"], &["PATH=/nowhere"])).is_err());
    }

    #[test]
    fn home_comes_from_passwd() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/srv/app:/bin/sh\n";
        assert_eq!(
            (home(passwd, 1000), home(passwd, 0), home(passwd, 9)),
            ("/srv/app", "/root", "/")
        );
    }

    #[test]
    fn environment_keeps_its_order() {
        let made = environment(&process(&["x"], &["B=1", "A=2", "HOME=/h", "B=3"]));
        let expected: Vec<CString> = ["B=1", "A=2", "HOME=/h", "B=3"]
            .iter()
            .map(|e| CString::new(*e).unwrap())
            .collect();
        assert_eq!(made, expected);
    }
}
