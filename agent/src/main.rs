//! `vmbox-agent`: PID 1 of the guest, which dials the host and runs the containers that it is sent.
//!
//! ```text
//! kernel ─► boot ─► dial + hello ─► ttrpc: rpc/pod, rpc/containers, rpc/processes
//!                                      │ types: pod ► container ► process ► stdio
//!                                      ▼
//!                                   executor (a fresh process of this binary per create and exec)
//! ```
// Without libstd's own main: it aborts when fds 0–2 are closed and /dev/null is missing, which is what a kernel without a
// console gives its init; and it ignores SIGPIPE, which containers would inherit.
#![cfg_attr(not(test), no_main)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod boot;
mod cgroup;
mod container;
mod cpus;
mod executor;
mod host;
mod keeper;
mod log;
mod net;
mod pod;
mod process;
mod processes;
mod reaper;
mod rpc;
mod spec;
mod state;
mod stdio;
mod traces;

use std::path::PathBuf;

/// What this process was started as.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// PID 1 of a guest.
    Init,
    /// One-shot child that makes a container or a process ([`executor`]).
    Executor,
    /// One-shot child in a container's namespaces ([`executor::hook`]), with what it is to do.
    Hook(Vec<String>),
    /// A developer's: the same services on a Unix socket of an ordinary Linux, as root.
    Serve(PathBuf),
    Usage,
}

fn role(args: &[String], pid: u32) -> Role {
    match args {
        [name] if name == executor::ARGUMENT => Role::Executor,
        [name, words @ ..] if name == executor::hook::ARGUMENT => Role::Hook(words.into()),
        [flag, path] if flag == "--serve" => Role::Serve(path.into()),
        // The kernel passes words of its command line that it does not know to init.
        _ if pid == 1 => Role::Init,
        _ => Role::Usage,
    }
}

#[cfg_attr(not(test), unsafe(no_mangle))]
#[cfg_attr(test, allow(dead_code))]
extern "C" fn main(_argc: libc::c_int, _argv: *const *const libc::c_char) -> libc::c_int {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|a| a.to_string_lossy().into_owned())
        .collect();
    match role(&args, std::process::id()) {
        Role::Executor => executor::child::main(),
        Role::Hook(words) => executor::hook::main(&words),
        Role::Init => {
            log::end_the_machine_on_panic();
            let ended = boot::boot()
                .map_err(host::HostError::from)
                .and_then(|attic| host::run(host::Endpoint::Vsock, net::Network::new(attic)));
            if let Err(error) = ended {
                log::error(&format!("vmbox-agent: {error}"));
                // PID 1 ends, the kernel panics, and the host reads why in the kernel's log.
                return 1;
            }
            boot::reboot()
        }
        Role::Serve(path) => match boot::prepare_developer_host()
            .map_err(host::HostError::from)
            .and_then(|()| host::run(host::Endpoint::Unix(path), net::Network::new(None)))
        {
            Ok(()) => 0,
            Err(error) => {
                log::error(&format!("vmbox-agent: {error}"));
                1
            }
        },
        Role::Usage => {
            log::error(
                "vmbox-agent is the first process of a vmbox guest; it does nothing elsewhere",
            );
            2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn kernel_leftovers_do_not_change_the_role_of_pid_1() {
        assert_eq!(role(&words("quiet splash"), 1), Role::Init);
        assert_eq!(role(&[], 1), Role::Init);
    }

    #[test]
    fn only_pid_1_boots() {
        assert_eq!(role(&[], 77), Role::Usage);
        assert_eq!(role(&words("executor"), 77), Role::Executor);
    }
}
