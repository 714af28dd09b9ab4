//! `exec`: another process in a container, with a keeper of its own.

use std::{
    fs,
    path::{Component, Path},
    process::Child,
};

use serde_json::{Value, json};

use super::{
    Context,
    args::ExecArgs,
    cgroup,
    create::{absolute, console, refuse_descriptors, write_pid},
    error::OciError,
    record::{Record, Status},
    seat::{Console, Netns, Seat},
    store::{self, PROCESS},
    verbs::ask,
    view::View,
    wait,
};
use crate::{
    pod::{ContainerId, place::PodDir, refuse},
    stdio::RawMode,
    user::one_line,
};

/// The exit code when the process could not be started; runc's own failures in exec have it too.
const NOT_STARTED: u8 = 255;

/// Runs a process; its exit code, or 0 once it runs if nobody waits for it.
///
/// # Errors
/// An option that can't be had; every other failure is told and has its own code, as in runc.
pub fn exec(context: &Context, args: &ExecArgs) -> Result<u8, OciError> {
    refuse_options(args)?;
    attached(context, args).or_else(|error| {
        let message = format!("exec failed: {}", one_line(&error));
        context.log.tell(super::log::Level::Error, &message);
        Ok(NOT_STARTED)
    })
}

fn attached(context: &Context, args: &ExecArgs) -> Result<u8, OciError> {
    let id = store::parse_id(&args.id)?;
    let record = store::look_up(&context.root, &args.id)?;
    match record.status() {
        Status::Created | Status::Running => {}
        Status::Paused if args.ignore_paused => {}
        Status::Paused => return Err(OciError::ExecPaused),
        Status::Creating | Status::Stopped => return Err(OciError::ExecStopped),
    }
    let process = process(context, args, &id)?;
    let terminal = process["terminal"].as_bool().unwrap_or(false);
    let socket = args.start.console_socket.as_deref();
    let socket = socket.filter(|path| !path.as_os_str().is_empty());
    let console = console(terminal, socket, args.detach)?;
    let raw = match console {
        // Before the process can print anything.
        Console::Ours => RawMode::enter().map_err(OciError::host("set the terminal up"))?,
        Console::Streams | Console::Socket(_) => None,
    };
    let started = start(&record, &id, &process, console, args);
    if let Ok(child) = &started {
        context.note(|| {
            format!(
                "container {id}: process {} stands for the new one",
                child.id()
            )
        });
    }
    let code = match started {
        Ok(_) if args.detach => Ok(0),
        Ok(child) => wait::wait(child),
        Err(error) => Err(error),
    };
    // Before anything is told.
    drop(raw);
    code
}

fn refuse_options(args: &ExecArgs) -> Result<(), OciError> {
    refuse_descriptors(args.start.preserve_fds)?;
    match args.cgroup.as_slice() {
        [] => Ok(()),
        [path] if is_below(path) => Ok(()),
        [path] => Err(OciError::Refused(format!(
            "--cgroup: {path} is not a sub cgroup path"
        ))),
        _ => Err(OciError::Refused(
            "--cgroup: cgroup v2 has one hierarchy, so one path".into(),
        )),
    }
}

/// Whether a path, which begins at the container's cgroup, stays there.
fn is_below(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    parts.all(|part| matches!(part, Component::Normal(_) | Component::RootDir))
}

fn start(
    record: &Record,
    id: &ContainerId,
    process: &Value,
    console: Console<'_>,
    args: &ExecArgs,
) -> Result<Child, OciError> {
    let pid_file = args.start.pid_file.as_deref().map(absolute);
    let pod = PodDir::at(record.pod.clone());
    // In the container's network namespace on the host, as every process of the container would be.
    let keeper = record.keeper.ok_or(OciError::ExecStopped)?;
    let netns = Netns::At(format!("/proc/{}/ns/net", keeper.pid).into());
    let seat = Seat::take(&pod, console, &netns, None)?;
    if let Some(cgroup) = &record.cgroup {
        cgroup::enter(&cgroup.dir(), seat.process.pid)?;
    }
    let spec = process.to_string().into_bytes();
    let name = ContainerId::random();
    let stdio = seat.stdio.clone();
    let cgroup = args.cgroup.first().map_or("", String::as_str);
    let (name, waits) = (name.as_str(), args.ignore_paused);
    let made = ask(record, "execute", async |agent| {
        agent.exec(id, name, spec, stdio, cgroup, waits).await
    });
    made.map_err(|error| match error {
        OciError::Agent(step, error) => {
            let program = process["args"][0].as_str().unwrap_or_default();
            OciError::of_program(step, error, program)
        }
        error => error,
    })?;
    if let Some(path) = pid_file {
        write_pid(&path, seat.process.pid)?;
    }
    seat.go(&View::Of(keeper.pid))
}

/// The OCI process object: a file's, or the container's own with what the options say.
fn process(context: &Context, args: &ExecArgs, id: &ContainerId) -> Result<Value, OciError> {
    let mut process = match &args.process {
        Some(path) => with_user(read(path)?),
        None => {
            let own = read(&context.root.join(id.as_str()).join(PROCESS))?;
            with_options(own, args)?
        }
    };
    let mut typed: oci_spec::runtime::Process =
        serde_json::from_value(process.clone()).map_err(|source| OciError::Json {
            path: args.process.clone().unwrap_or_else(|| PROCESS.into()),
            source,
        })?;
    for field in refuse::take_process_labels(&mut typed)? {
        context.warn(&field);
    }
    if typed.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(OciError::Refused("process args cannot be empty".into()));
    }
    for label in ["apparmorProfile", "selinuxLabel"] {
        if let Some(fields) = process.as_object_mut() {
            fields.remove(label);
        }
    }
    Ok(process)
}

/// One that names no user is root's, as Go's programs read it.
fn with_user(mut process: Value) -> Value {
    if let Some(fields) = process.as_object_mut() {
        let user = fields.entry("user").or_insert(Value::Null);
        if user.is_null() {
            *user = json!({"uid": 0, "gid": 0});
        }
    }
    process
}

fn read(path: &Path) -> Result<Value, OciError> {
    let text = fs::read(path).map_err(OciError::host(format!("read {}", path.display())))?;
    serde_json::from_slice(&text).map_err(|source| OciError::Json {
        path: path.to_owned(),
        source,
    })
}

/// What the options change in the container's own process (runc's utils_linux.go, getProcess).
fn with_options(mut process: Value, args: &ExecArgs) -> Result<Value, OciError> {
    process["args"] = json!(args.command);
    process["terminal"] = json!(args.tty);
    if let Some(cwd) = &args.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some(profile) = &args.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(label) = &args.process_label {
        process["selinuxLabel"] = json!(label);
    }
    if args.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    append(&mut process["env"], args.env.iter().map(|v| json!(v)));
    append(
        &mut process["user"]["additionalGids"],
        args.additional_gids.iter().map(|gid| json!(gid)),
    );
    for set in ["bounding", "effective", "permitted", "ambient"] {
        if !args.cap.is_empty() {
            let caps = args.cap.iter().map(|cap| json!(cap));
            append(&mut process["capabilities"][set], caps);
        }
    }
    if let Some(user) = &args.user {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user.as_str(), None),
        };
        let number = |text: &str| {
            let bad =
                |_| OciError::Refused(format!("--user: {user:?} is not UID[:GID] in numbers"));
            text.parse::<u32>().map_err(bad)
        };
        process["user"]["uid"] = json!(number(uid)?);
        if let Some(gid) = gid {
            process["user"]["gid"] = json!(number(gid)?);
        }
    }
    Ok(process)
}

fn append(list: &mut Value, more: impl Iterator<Item = Value>) {
    let more: Vec<Value> = more.collect();
    match list.as_array_mut() {
        Some(list) => list.extend(more),
        None if more.is_empty() => {}
        None => *list = Value::Array(more),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn args(words: &[&str]) -> ExecArgs {
        let words = ["vmbox", "exec"].iter().chain(words);
        match crate::user::args::Cli::try_parse_from(words).unwrap().verb {
            crate::user::args::Verb::Oci(super::super::args::OciVerb::Exec(args)) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn own() -> Value {
        json!({"args": ["sh"], "cwd": "/", "env": ["A=1"], "terminal": true,
               "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": ["CAP_KILL"]}})
    }

    #[test]
    fn options_change_the_containers_own_process() {
        let args = args(&[
            "--cwd",
            "/tmp",
            "-e",
            "B=2",
            "--user",
            "5:6",
            "-g",
            "7",
            "--cap",
            "CAP_CHOWN",
            "web",
            "id",
            "-u",
        ]);
        let process = with_options(own(), &args).unwrap();
        assert_eq!(process["args"], json!(["id", "-u"]));
        assert_eq!(process["cwd"], "/tmp");
        assert_eq!(process["env"], json!(["A=1", "B=2"]));
        assert_eq!(process["terminal"], false);
        assert_eq!(
            process["user"],
            json!({"uid": 5, "gid": 6, "additionalGids": [7]})
        );
        assert_eq!(
            process["capabilities"]["bounding"],
            json!(["CAP_KILL", "CAP_CHOWN"])
        );
        assert_eq!(process["capabilities"]["effective"], json!(["CAP_CHOWN"]));
    }

    #[test]
    fn a_cgroup_is_one_of_the_containers() {
        let refused = |words: &[&str]| refuse_options(&args(words)).is_err();
        assert!(!refused(&["--cgroup", "/", "web", "id"]));
        assert!(!refused(&["--cgroup", "a/b", "web", "id"]));
        assert!(refused(&["--cgroup", "..", "web", "id"]));
        assert!(refused(&["--cgroup", "a/../..", "web", "id"]));
        assert!(refused(&["--cgroup", "a", "--cgroup", "b", "web", "id"]));
    }

    #[test]
    fn the_refusal_of_a_cgroup_names_it_as_runc_does() {
        let error = refuse_options(&args(&["--cgroup", "..", "web", "id"])).unwrap_err();
        assert!(error.to_string().contains(" .. is not a sub cgroup path"));
    }

    #[test]
    fn a_process_that_names_no_user_is_roots() {
        let parse = |process: Value| {
            let process = serde_json::from_value::<oci_spec::runtime::Process>(with_user(process));
            let user = process.unwrap().user().clone();
            (user.uid(), user.gid())
        };
        assert_eq!(parse(json!({"args": ["id"], "cwd": "/"})), (0, 0));
        let named = json!({"args": ["id"], "cwd": "/", "user": {"uid": 5, "gid": 6}});
        assert_eq!(parse(named), (5, 6));
    }

    #[test]
    fn users_are_numbers() {
        assert!(with_options(own(), &args(&["--user", "bob", "web", "id"])).is_err());
    }
}
