//! What runs in a container's namespaces when its mounts are made and it has not entered them: createContainer hooks, and the last
//! touches to its file systems.
//!
//! libcontainer starts a program for each createContainer hook at this moment, as root of the container's namespaces but with
//! the guest's root directory (OCI runtime-spec runtime.md#lifecycle, step 8). That program is this binary: nothing else is in
//! the guest. It changes its root to the container's and becomes the hook, or does the last touches itself, which come first.

use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use libcontainer::oci_spec::runtime::{Hook, HookBuilder, Hooks, Spec};

use super::{start_hooks, touches};
use crate::spec::Touches;

/// argv[1] of such a process.
pub const ARGUMENT: &str = "hook";
const TOUCHES: &str = "touches.json";
/// Where it says what it was doing, as its output goes nowhere and libcontainer keeps only its exit code.
const FAILURE: &str = "failure";

/// Has libcontainer run this binary for each createContainer hook, and first for the touches if there are any; startContainer hooks are
/// put aside.
///
/// # Errors
/// The bundle can't be written to.
pub fn install(spec: &mut Spec, touches: &Touches, bundle: &Path) -> std::io::Result<()> {
    let root = crate::spec::root(spec).display().to_string();
    let bundle_text = bundle.display().to_string();
    let mut through_us = Vec::new();
    if *touches != Touches::default() {
        fs::write(bundle.join(TOUCHES), serde_json::to_vec(touches)?)?;
        let words = ["touch", &root, &bundle_text].map(str::to_owned);
        through_us.push(own(words.into(), None));
    }
    let hooks = spec.hooks().clone().unwrap_or_default();
    let asked = hooks.create_container().clone().unwrap_or_default();
    for (number, hook) in asked.iter().enumerate() {
        let path = hook.path().display().to_string();
        let label = format!("hooks.createContainer[{number}] ({path})");
        let mut words = ["run", &root, &bundle_text, &label, &path]
            .map(str::to_owned)
            .to_vec();
        match hook.args().as_deref() {
            Some(args) if !args.is_empty() => words.extend_from_slice(args),
            _ => words.push(path),
        }
        through_us.push(own(words, Some(hook)));
    }
    start_hooks::put_aside(
        hooks.start_container().as_deref().unwrap_or_default(),
        bundle,
    )?;
    if through_us.is_empty() {
        spec.set_hooks(None);
        return Ok(());
    }
    let failure = bundle.join(FAILURE);
    fs::write(&failure, "")?;
    // Root of a user namespace is nobody here.
    fs::set_permissions(&failure, fs::Permissions::from_mode(0o666))?;
    let mut kept = Hooks::default();
    kept.set_create_container(Some(through_us));
    spec.set_hooks(Some(kept));
    Ok(())
}

fn own(words: Vec<String>, of: Option<&Hook>) -> Hook {
    let mut args = vec!["vmbox-agent".to_owned(), ARGUMENT.to_owned()];
    args.extend(words);
    let mut hook = HookBuilder::default()
        .path("/proc/self/exe")
        .args(args)
        .build()
        .expect("every field without a default is given");
    if let Some(of) = of {
        hook.set_env(of.env().clone()).set_timeout(of.timeout());
    }
    hook
}

/// What a failed hook said, or was.
pub fn failure(bundle: &Path) -> Option<String> {
    let text = fs::read_to_string(bundle.join(FAILURE)).ok()?;
    (!text.trim().is_empty()).then(|| text.trim().to_owned())
}

/// The main function of such a process, with the words behind [`ARGUMENT`].
pub fn main(words: &[String]) -> i32 {
    let (bundle, result) = match words {
        [verb, root, bundle] if verb == "touch" => (bundle, touch(Path::new(root), bundle)),
        [verb, root, bundle, label, path, args @ ..] if verb == "run" => {
            (bundle, run(Path::new(root), bundle, label, path, args))
        }
        _ => return 2,
    };
    let Err(why) = result else { return 0 };
    // Without the file nobody learns why, but everybody that it failed.
    let _ = fs::write(Path::new(bundle).join(FAILURE), why);
    1
}

fn touch(root: &Path, bundle: &str) -> Result<(), String> {
    let text = fs::read(Path::new(bundle).join(TOUCHES)).map_err(|e| format!("{TOUCHES}: {e}"))?;
    let touches: Touches = serde_json::from_slice(&text).map_err(|e| format!("{TOUCHES}: {e}"))?;
    touches::apply(root, &touches)
}

/// Becomes the hook's program. The file says which hook it is until the next one begins, so that its exit code has a name.
fn run(root: &Path, bundle: &str, label: &str, path: &str, args: &[String]) -> Result<(), String> {
    let failure = Path::new(bundle).join(FAILURE);
    fs::write(&failure, label).map_err(|e| format!("{label}: {e}"))?;
    let file = fs::OpenOptions::new().write(true).open(&failure);
    let error = |e: nix::Error| format!("{label}: {e}");
    enter(root).map_err(error)?;
    let text = |word: &str| CString::new(word).map_err(|e| format!("{label}: {e}"));
    let args: Vec<CString> = args.iter().map(|arg| text(arg)).collect::<Result<_, _>>()?;
    let environment: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat())
        .filter_map(|entry| CString::new(entry).ok())
        .collect();
    let Err(errno) = nix::unistd::execve(&text(path)?, &args, &environment);
    let why = error(errno);
    // The path to the file is gone with the old root.
    if let Ok(mut file) = file {
        let _ = std::io::Write::write_all(&mut file, why.as_bytes());
    }
    std::process::exit(1)
}

/// Makes a directory the root and the working directory of this process.
pub(super) fn enter(root: &Path) -> nix::Result<()> {
    nix::unistd::chdir(root)?;
    nix::unistd::chroot(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn installed(hooks: serde_json::Value, touches: &Touches) -> serde_json::Value {
        let bundle = tempfile::tempdir().unwrap();
        let config = json!({ "ociVersion": "1.2.0", "root": { "path": "/r" }, "hooks": hooks });
        let mut spec: Spec = serde_json::from_value(config).unwrap();
        install(&mut spec, touches, bundle.path()).unwrap();
        serde_json::to_value(spec.hooks()).unwrap()
    }

    #[test]
    fn a_container_without_hooks_and_touches_has_none() {
        assert!(installed(json!({}), &Touches::default()).is_null());
    }

    #[test]
    fn touches_come_before_the_hooks_and_hooks_keep_what_they_were_given() {
        let touches = Touches {
            cwd: Some("/srv".into()),
            ..Touches::default()
        };
        let hooks = json!({ "createContainer": [{ "path": "/bin/h", "args": ["h", "x"], "env": ["A=1"], "timeout": 3 }],
                            "startContainer": [{ "path": "/bin/s" }] });
        let made = installed(hooks, &touches);
        let ours = &made["createContainer"];
        assert_eq!(ours[0]["args"][2], "touch");
        assert_eq!(ours[1]["args"][2], "run");
        let args = ours[1]["args"].as_array().unwrap();
        assert_eq!(args[args.len() - 2..], ["h", "x"]);
        assert_eq!(
            (&ours[1]["env"][0], &ours[1]["timeout"]),
            (&json!("A=1"), &json!(3))
        );
        assert!(made["startContainer"].is_null());
    }
}
