//! Hooks that run on the host: prestart and createRuntime, poststart, poststop (runtime-spec config.md#posix-platform-hooks).

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use oci_spec::runtime::Hooks;
use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::OciError;

/// One hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Hook {
    path: PathBuf,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    timeout: Option<u64>,
}

/// The lists that are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HostHooks {
    prestart: Vec<Hook>,
    create_runtime: Vec<Hook>,
    poststart: Vec<Hook>,
    poststop: Vec<Hook>,
}

impl HostHooks {
    /// Takes the host's hooks out of a spec's, and leaves the guest's.
    ///
    /// # Errors
    /// Not with hooks that were parsed.
    pub fn take(hooks: &mut Hooks) -> serde_json::Result<Self> {
        let taken = serde_json::from_value(without_nulls(serde_json::to_value(&*hooks)?))?;
        hooks
            .set_prestart(None)
            .set_create_runtime(None)
            .set_poststart(None)
            .set_poststop(None);
        Ok(taken)
    }

    /// Those of `create`, once the environment exists. The first that fails ends it.
    ///
    /// # Errors
    /// Which hook failed, and how.
    pub fn before_start(&self, state: &Value) -> Result<(), OciError> {
        run_all("prestart", &self.prestart, state)?;
        run_all("createRuntime", &self.create_runtime, state)
    }

    /// Those of `start`.
    ///
    /// # Errors
    /// Which hook failed, and how.
    pub fn after_start(&self, state: &Value) -> Result<(), OciError> {
        run_all("poststart", &self.poststart, state)
    }

    /// Those of `delete`: all of them, whatever becomes of each (runtime.md#lifecycle, step 13).
    pub fn after_stop(&self, state: &Value, mut failed: impl FnMut(OciError)) {
        for (index, hook) in self.poststop.iter().enumerate() {
            if let Err(why) = run(hook, state) {
                failed(OciError::Hook {
                    kind: "poststop",
                    index,
                    why,
                });
            }
        }
    }
}

fn without_nulls(mut hooks: Value) -> Value {
    if let Some(lists) = hooks.as_object_mut() {
        lists.retain(|_, list| !list.is_null());
        for hook in lists.values_mut().filter_map(Value::as_array_mut).flatten() {
            if let Some(fields) = hook.as_object_mut() {
                fields.retain(|_, value| !value.is_null());
            }
        }
    }
    hooks
}

fn run_all(kind: &'static str, hooks: &[Hook], state: &Value) -> Result<(), OciError> {
    for (index, hook) in hooks.iter().enumerate() {
        run(hook, state).map_err(|why| OciError::Hook { kind, index, why })?;
    }
    Ok(())
}

/// Runs one hook with the state on its standard input; why it failed, with what it said. Files in memory instead of
/// pipes: nobody has to read and write at the same time, or wait for what a hook leaves running.
fn run(hook: &Hook, state: &Value) -> Result<(), String> {
    let name = |error: io::Error| format!("{}: {error}", hook.path.display());
    let variables = hook
        .env
        .iter()
        .filter_map(|variable| variable.split_once('='));
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        std::os::unix::process::CommandExt::arg0(&mut command, first);
        command.args(rest);
    }
    let mut said = memory_file("").map_err(name)?;
    let mut child = command
        .env_clear()
        .envs(variables)
        .stdin(memory_file(&state.to_string()).map_err(name)?)
        .stdout(said.try_clone().map_err(name)?)
        .stderr(said.try_clone().map_err(name)?)
        .spawn()
        .map_err(name)?;
    let deadline = hook
        .timeout
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let status = wait(&mut child, deadline)?;
    if status.success() {
        return Ok(());
    }
    let mut words = Vec::new();
    let _ = said.rewind().and_then(|()| said.read_to_end(&mut words));
    let words = String::from_utf8_lossy(&words);
    Err(format!("{status}, output: {}", words.trim()).replace('\n', " "))
}

fn memory_file(content: &str) -> io::Result<File> {
    let mut file = File::from(rustix::fs::memfd_create("hook", MemfdFlags::CLOEXEC)?);
    file.write_all(content.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn wait(
    child: &mut std::process::Child,
    deadline: Option<Instant>,
) -> Result<std::process::ExitStatus, String> {
    let Some(deadline) = deadline else {
        return child.wait().map_err(|error| error.to_string());
    };
    let process = super::process::ProcessRef::of(child.id());
    let left = deadline.saturating_duration_since(Instant::now());
    if process.is_some_and(|process| !process.wait_for_end(left)) {
        let _ = child.kill();
        let _ = child.wait();
        return Err("hook ran past specified timeout".into());
    }
    child.wait().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn hooks(value: Value) -> Hooks {
        serde_json::from_value(value).unwrap()
    }

    fn shell(script: &str) -> Value {
        json!({"path": "/bin/sh", "args": ["sh", "-c", script]})
    }

    #[test]
    fn a_hook_gets_the_state_on_its_standard_input() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state");
        let script = format!("cat > {}", file.display());
        let mut hooks = hooks(json!({"createRuntime": [shell(&script)]}));
        let taken = HostHooks::take(&mut hooks).unwrap();
        taken.before_start(&json!({"id": "web"})).unwrap();
        assert_eq!(std::fs::read_to_string(file).unwrap(), r#"{"id":"web"}"#);
    }

    #[test]
    fn a_failing_hook_is_named_with_what_it_said() {
        let mut hooks = hooks(json!({"prestart": [shell("exit 0"), shell("echo no >&2; exit 3")]}));
        let taken = HostHooks::take(&mut hooks).unwrap();
        let error = taken.before_start(&json!({})).unwrap_err().to_string();
        assert!(
            error.contains("prestart hook #1") && error.contains("output: no"),
            "{error}"
        );
    }

    #[test]
    fn a_hook_that_takes_too_long_is_killed() {
        let slow = json!({"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1});
        let taken = HostHooks::take(&mut hooks(json!({"poststart": [slow]}))).unwrap();
        let error = taken.after_start(&json!({})).unwrap_err().to_string();
        assert!(error.contains("timeout"), "{error}");
    }

    #[test]
    fn every_poststop_hook_runs_though_one_fails() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ran");
        let second = shell(&format!("touch {}", file.display()));
        let mut hooks = hooks(json!({"poststop": [shell("exit 1"), second]}));
        let taken = HostHooks::take(&mut hooks).unwrap();
        let mut failures = 0;
        taken.after_stop(&json!({}), |_| failures += 1);
        assert_eq!(failures, 1);
        assert!(file.exists());
    }

    #[test]
    fn the_guests_hooks_stay() {
        let mut hooks = hooks(json!({"createContainer": [shell("x")], "poststop": [shell("y")]}));
        HostHooks::take(&mut hooks).unwrap();
        assert!(hooks.create_container().is_some() && hooks.poststop().is_none());
    }
}
