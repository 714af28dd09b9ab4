//! startContainer hooks: in the container and under all of its restrictions, when it has been told to start (OCI runtime-spec
//! runtime.md#lifecycle, step 8).
//!
//! Ours, not libcontainer's (0.7): that one forgets which hook failed and by which signal one died, and says `creating` to them.

use std::ffi::{CString, OsStr};
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use libcontainer::oci_spec::runtime::{Hook, Spec};
use serde_json::{Value, json};

const FILE: &str = "start-hooks.json";

/// Puts them aside, where libcontainer doesn't see them.
///
/// # Errors
/// The bundle can't be written to.
pub fn put_aside(hooks: &[Hook], bundle: &Path) -> io::Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    fs::write(bundle.join(FILE), serde_json::to_vec(hooks)?)
}

/// A container's.
#[derive(Debug, Clone, Default)]
pub struct StartHooks {
    hooks: Vec<Hook>,
    id: String,
    bundle: String,
}

impl StartHooks {
    /// Those that were put aside.
    ///
    /// # Errors
    /// The file is there, and can't be read.
    pub fn read(id: &str, bundle: &str) -> io::Result<Self> {
        let hooks = match fs::read(Path::new(bundle).join(FILE)) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Self {
            hooks,
            id: id.into(),
            bundle: bundle.into(),
        })
    }

    /// Runs them one after the other. A hook without an environment has the container's, as with runc.
    ///
    /// # Errors
    /// The first that failed, in runc's words; those after it have not run.
    pub fn run(&self, spec: &Spec, environment: &[CString]) -> Result<(), String> {
        let state = self.state(spec).to_string();
        for (number, hook) in self.hooks.iter().enumerate() {
            let path = hook.path().display();
            let field = format!("hooks.startContainer[{number}] ({path})");
            run(hook, &state, environment)
                .map_err(|why| format!("{field}: error running hook: {why}"))?;
        }
        Ok(())
    }

    /// runtime.md#state
    fn state(&self, spec: &Spec) -> Value {
        json!({
            "ociVersion": spec.version(),
            "id": self.id,
            "status": "created",
            "pid": std::process::id(),
            "bundle": self.bundle,
            "annotations": spec.annotations().clone().unwrap_or_default(),
        })
    }
}

fn run(hook: &Hook, state: &str, environment: &[CString]) -> Result<(), String> {
    let mut command = Command::new(hook.path());
    if let Some((first, rest)) = hook.args().as_deref().and_then(<[String]>::split_first) {
        command.arg0(first).args(rest);
    }
    command.env_clear();
    match hook.env() {
        Some(own) => command.envs(own.iter().filter_map(|entry| entry.split_once('='))),
        None => command.envs(environment.iter().filter_map(|entry| variable(entry))),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| e.to_string())?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(state.as_bytes()) {
            // It need not read.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            other => other.map_err(|e| e.to_string())?,
        }
    }
    let limit = hook.timeout().and_then(|s| u64::try_from(s).ok());
    let status = wait(child, limit.map(Duration::from_secs))?;
    if status.success() {
        Ok(())
    } else {
        Err(words(status))
    }
}

fn variable(entry: &CString) -> Option<(&OsStr, &OsStr)> {
    let entry = entry.as_bytes();
    let equals = entry.iter().position(|&byte| byte == b'=')?;
    let (name, value) = (&entry[..equals], &entry[equals + 1..]);
    Some((OsStr::from_bytes(name), OsStr::from_bytes(value)))
}

/// The thread that waits is one of a process that will be another program, or end.
fn wait(mut child: Child, limit: Option<Duration>) -> Result<ExitStatus, String> {
    let error = |e: io::Error| e.to_string();
    let Some(limit) = limit else {
        return child.wait().map_err(error);
    };
    let pid = child.id();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait()));
    receiver.recv_timeout(limit).map_or_else(
        |_| {
            // SAFETY: kill takes two integers; nobody has waited for this child.
            unsafe { libc::kill(pid.cast_signed(), libc::SIGKILL) };
            Err("hook ran past specified timeout".into())
        },
        |status| status.map_err(error),
    )
}

/// As Go has them, in which runc is written.
fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(libc::SIGSYS)) => "signal: bad system call".into(),
        (None, Some(libc::SIGKILL)) => "signal: killed".into(),
        (None, _) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hooks(bundle: &Path, value: Value) -> StartHooks {
        let hooks: Vec<Hook> = serde_json::from_value(value).unwrap();
        put_aside(&hooks, bundle).unwrap();
        StartHooks::read("web", bundle.to_str().unwrap()).unwrap()
    }

    fn shell(script: &str) -> Value {
        json!({ "path": "/bin/sh", "args": ["sh", "-c", script] })
    }

    fn run_all(scripts: &[&str]) -> Result<(), String> {
        let bundle = tempfile::tempdir().unwrap();
        let list = scripts.iter().map(|script| shell(script)).collect();
        let spec = json!({ "ociVersion": "1.2.0", "annotations": { "a": "b" } });
        let spec = serde_json::from_value(spec).unwrap();
        hooks(bundle.path(), list).run(&spec, &[c"A=x=y".into()])
    }

    #[test]
    fn hooks_get_the_state_and_the_containers_environment() {
        run_all(&[
            r#"grep -q '"status":"created"'"#,
            r#"test "$A" = x=y && grep -q '"id":"web"'"#,
            "exec <&-",
        ])
        .unwrap();
    }

    #[test]
    fn a_hook_that_fails_is_told_in_runcs_words() {
        let bad = run_all(&["exit 0", "kill -SYS $$"]).unwrap_err();
        assert!(bad.contains("startContainer[1]"), "{bad}");
        assert!(
            bad.contains("error running hook: signal: bad system call"),
            "{bad}"
        );
        let three = run_all(&["exit 3", "exit 4"]).unwrap_err();
        assert!(
            three.ends_with("error running hook: exit status 3"),
            "{three}"
        );
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let bundle = tempfile::tempdir().unwrap();
        let slow = json!([{ "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 }]);
        let spec = serde_json::from_value(json!({ "ociVersion": "1.2.0" })).unwrap();
        let error = hooks(bundle.path(), slow).run(&spec, &[]).unwrap_err();
        assert!(error.contains("timeout"), "{error}");
    }

    #[test]
    fn a_container_without_them_has_none() {
        let bundle = tempfile::tempdir().unwrap();
        assert!(hooks(bundle.path(), json!([])).hooks.is_empty());
    }
}
