//! `create` by youki's libcontainer (OCI runtime-spec runtime.md#create).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sched::CloneFlags;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use nix::unistd::Pid;

use super::channel::Channel;
use super::start_hooks::StartHooks;
use super::touches::set_attributes;
use super::workload::Workload;
use super::{Failure, Report, Request, STATE};

/// Makes the container and reports its init.
pub fn create(channel: &Channel, request: &Request, stdio: Vec<OwnedFd>) -> Result<(), Failure> {
    let Request::Create {
        id,
        bundle,
        terminal,
        read_only_dev,
    } = request
    else {
        return Err(Failure::other("not a create"));
    };
    super::causes::Causes::send_on(channel.raw());
    // libcontainer writes the state to each hook, which need not read it. What is started gets the default again.
    // SAFETY: SIG_IGN is no code, and this process has one thread.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    let console = if *terminal {
        Some(Console::listen(bundle)?)
    } else {
        None
    };
    let confinement = super::confine::read(Path::new(bundle))?;
    let hooks = StartHooks::read(id, bundle).map_err(|e| Failure::of("startContainer hooks", e))?;
    let mut builder = ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_executor(Workload::new(channel.raw(), confinement, hooks))
        .with_root_path(STATE)
        .map_err(|e| Failure::of("create", chain(&e)))?
        .with_console_socket(console.as_ref().map(|c| c.path.clone()));
    let mut stdio = stdio.into_iter();
    if let (Some(stdin), Some(stdout), Some(stderr)) = (stdio.next(), stdio.next(), stdio.next()) {
        builder = builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr);
    }
    let container = builder
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|e| Failure::other(chain(&e)))?;
    let pid = container
        .pid()
        .ok_or_else(|| Failure::other("the container's init ended before it was ready"))?;
    // libcontainer's type is of another version.
    let pid = Pid::from_raw(pid.as_raw());
    if let Some(console) = console {
        let terminal = console.accept()?;
        channel
            .send(&Report::Terminal, &[terminal.as_fd()])
            .map_err(|e| Failure::of("executor", e))?;
    }
    if *read_only_dev {
        make_dev_read_only(pid).map_err(|e| {
            // It waits for a start that will not come, and holds the channel.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
            Failure::of("mounts: /dev: ro", e)
        })?;
    }
    channel
        .send(
            &Report::Started {
                pid: pid.as_raw() as u32,
            },
            &[],
        )
        .map_err(|e| Failure::of("executor", e))
}

/// In the container's mount namespace, which this process ends in: libcontainer has made the last file there, the console's.
fn make_dev_read_only(init: Pid) -> io::Result<()> {
    let namespace = fs::File::open(format!("/proc/{init}/ns/mnt"))?;
    nix::sched::setns(namespace, CloneFlags::CLONE_NEWNS)?;
    set_attributes(Path::new("/dev"), libc::MOUNT_ATTR_RDONLY, 0)
}

/// An error with its causes in one line, each said once: libcontainer's own text often leaves the cause to `source`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.replace('\n', " ")
}

/// Where libcontainer sends the terminal that it makes in the container's devpts.
struct Console {
    listener: UnixListener,
    path: PathBuf,
}

impl Console {
    fn listen(bundle: &str) -> Result<Self, Failure> {
        let path = Path::new(bundle).join("tty");
        // Bound by its short name: a socket's path has room for 107 characters only.
        let listener = std::env::set_current_dir(bundle)
            .and_then(|()| UnixListener::bind("tty"))
            .and_then(|listener| std::env::set_current_dir("/").map(|()| listener))
            .map_err(|e| Failure::of("terminal", e))?;
        Ok(Self { listener, path })
    }

    /// Takes what was sent: connecting and sending do not wait for this.
    fn accept(self) -> Result<OwnedFd, Failure> {
        use std::os::fd::{AsRawFd, FromRawFd, RawFd};
        let (stream, _) = self
            .listener
            .accept()
            .map_err(|e| Failure::of("terminal", e))?;
        let _ = fs::remove_file(&self.path);
        let mut bytes = [0; 64];
        let mut control = nix::cmsg_space!([RawFd; 1]);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<UnixAddr>(
            stream.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .map_err(|e| Failure::of("terminal", e))?;
        for item in message.cmsgs().map_err(|e| Failure::of("terminal", e))? {
            if let ControlMessageOwned::ScmRights(fds) = item
                && let Some(&fd) = fds.first()
            {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows of it.
                return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        Err(Failure::other("libcontainer sent no terminal"))
    }
}
