//! Starts a [keeper](super::keeper), and tells the agent where it listens.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command},
};

use rustix::{
    io::FdFlags,
    pty::OpenptFlags,
    stdio, termios,
    thread::{LinkNameSpaceType, UnshareFlags},
};
use vmbox_protocol::agent::Stdio;

use super::{
    error::OciError,
    keeper::{GO, READY, VERB},
    kernel,
    process::ProcessRef,
    view::View,
};
use crate::{pod::place::PodDir, stdio::bind_free_port, vm::hold_lifeline};

/// What a process is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Console<'a> {
    /// Three streams: ours.
    Streams,
    /// A terminal, whose master is sent to this socket.
    Socket(&'a Path),
    /// A terminal: ours.
    Ours,
}

/// Which network namespace the keeper is in: the one that engines find by its pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Netns {
    /// A new one.
    New,
    /// This one.
    At(PathBuf),
}

/// A keeper that waits for its process to be made. Dropped before [`Self::go`], it ends.
#[derive(Debug)]
pub struct Seat {
    child: Option<Child>,
    birth: UnixStream,
    _ports: Vec<Port>,
    /// For the agent.
    pub stdio: Stdio,
    /// The keeper.
    pub process: ProcessRef,
}

/// A socket file, removed when the agent has dialed it or never will.
#[derive(Debug)]
struct Port {
    number: u32,
    path: PathBuf,
    listener: UnixListener,
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Descriptors that a child is to inherit, and what it is told of them.
#[derive(Default)]
struct Legacy {
    words: Vec<String>,
    fds: Vec<RawFd>,
}

impl Legacy {
    fn leave(&mut self, name: &str, fd: &impl AsRawFd) {
        self.words.push(format!("{name}={}", fd.as_raw_fd()));
        self.fds.push(fd.as_raw_fd());
    }
}

impl Seat {
    /// Starts a keeper in `pod`: a container's, which writes the exit status to its directory `dir`, or that of another
    /// process in it.
    ///
    /// # Errors
    /// The host has no room, or the pod has ended.
    pub fn take(
        pod: &PodDir,
        console: Console<'_>,
        netns: &Netns,
        dir: Option<&Path>,
    ) -> Result<Self, OciError> {
        let failed = |what: &'static str| OciError::host(what);
        let terminal = console != Console::Streams;
        let mut ports = Vec::new();
        let names = ["keeper", "stdin", "stdout", "stderr"];
        for _ in names.iter().take(if terminal { 3 } else { 4 }) {
            let (number, path, listener) =
                bind_free_port(pod, &|_| Ok(())).map_err(failed("listen for the agent"))?;
            ports.push(Port {
                number,
                path,
                listener,
            });
        }
        let (birth, theirs) = UnixStream::pair().map_err(failed("make a socket"))?;
        let lifeline = hold_lifeline(&pod.lifeline()).map_err(failed("hold the pod's lifeline"))?;
        let slave = match console {
            Console::Socket(socket) => Some(terminal_for(socket)?),
            Console::Streams | Console::Ours => None,
        };
        let mut legacy = Legacy::default();
        legacy.leave("birth", &theirs);
        legacy.leave("lifeline", &lifeline);
        for (name, port) in names.iter().zip(&ports) {
            legacy.leave(name, &port.listener);
        }
        if let Some(slave) = &slave {
            legacy.leave("console", slave);
        }
        if console == Console::Ours {
            legacy.words.push("terminal=1".into());
        }
        match netns {
            Netns::New => legacy.words.push("netns=new".into()),
            Netns::At(path) => legacy.words.push(format!("netns={}", path.display())),
        }
        if let Some(dir) = dir {
            legacy.words.push(format!("dir={}", dir.display()));
        }
        // A container's keeper is, one of another process in it would end with that namespace, its last words unsaid.
        let child =
            spawn(&legacy, dir.is_some()).map_err(failed("start the container's keeper"))?;
        let stdio = stdio_of(console, &ports);
        drop(theirs);
        let process = ProcessRef::of(child.id()).ok_or(OciError::Keeper)?;
        let mut seat = Self {
            child: Some(child),
            birth,
            _ports: ports,
            stdio,
            process,
        };
        seat.is_ready()?;
        Ok(seat)
    }

    fn is_ready(&mut self) -> Result<(), OciError> {
        let mut first = [0];
        match self.birth.read_exact(&mut first) {
            Ok(()) if first == [READY] => Ok(()),
            Ok(()) => {
                let mut rest = String::new();
                let _ = self.birth.read_to_string(&mut rest);
                let text = String::from_utf8_lossy(&first).into_owned() + &rest;
                Err(OciError::Host {
                    what: "prepare the container's keeper".into(),
                    source: std::io::Error::other(text),
                })
            }
            Err(_) => Err(OciError::Keeper),
        }
    }

    /// Its process exists: from now on the keeper lives as long as that. Returns when it has all connections, so that its
    /// sockets need no name any more, and shows `view`.
    ///
    /// # Errors
    /// It was killed meanwhile, or can't show that.
    pub fn go(mut self, view: &View) -> Result<Child, OciError> {
        let failed = |source| OciError::Host {
            what: "show the container's files by its pid".into(),
            source,
        };
        let mut order = vec![GO];
        order.extend(view.to_bytes().map_err(failed)?);
        let told = self.birth.write_all(&order);
        told.and_then(|()| self.birth.shutdown(Shutdown::Write))
            .map_err(|_| OciError::Keeper)?;
        // Up to the end of this socket: then it goes its own way.
        let mut why = String::new();
        let _ = self.birth.read_to_string(&mut why);
        match why.as_str() {
            "" => self.child.take().ok_or(OciError::Keeper),
            why => Err(failed(std::io::Error::other(why.to_owned()))),
        }
    }
}

impl Drop for Seat {
    /// Without a process, no keeper.
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the agent is told of a process' streams, for which these ports are listened on.
fn stdio_of(console: Console<'_>, ports: &[Port]) -> Stdio {
    let port = |index: usize| ports.get(index).map_or(0, |port| port.number);
    let ours = console == Console::Ours;
    let (columns, rows) = crate::stdio::size_of().filter(|_| ours).unwrap_or((0, 0));
    Stdio {
        terminal: console != Console::Streams,
        keeper_port: port(0),
        stdin_port: port(1),
        stdout_port: port(2),
        stderr_port: port(3),
        columns,
        rows,
        // As runc's, for programs that read it. A terminal of ours, which is raw, needs the carriage returns.
        plain_newlines: ours && !termios::isatty(stdio::stdout()),
        ..Default::default()
    }
}

/// Executes this program as a keeper, with these descriptors open in it, and alone in its PID namespace or not.
fn spawn(legacy: &Legacy, alone: bool) -> std::io::Result<Child> {
    let inherit = |flags| {
        legacy.fds.iter().try_for_each(|fd| {
            // SAFETY: the caller owns them and keeps them open across this call.
            let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*fd) };
            rustix::io::fcntl_setfd(fd, flags)
        })
    };
    // There is one thread: nothing else is executed meanwhile.
    inherit(FdFlags::empty())?;
    let mut command = Command::new("/proc/self/exe");
    command.arg(VERB).args(&legacy.words);
    let child = match alone {
        true => in_new_pid_namespace(|| command.spawn()),
        false => command.spawn(),
    };
    inherit(FdFlags::CLOEXEC)?;
    child
}

/// What is started is the first process of a PID namespace of its own, as a container's would be: engines that look for a
/// container's processes in the namespace of its pid must not find the host's.
fn in_new_pid_namespace(start: impl FnOnce() -> std::io::Result<Child>) -> std::io::Result<Child> {
    let home = File::open("/proc/self/ns/pid")?;
    // SAFETY: this one changes no descriptor and no memory, but where our next child will be.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }?;
    let child = start();
    let kind = Some(LinkNameSpaceType::ProcessID);
    rustix::thread::move_into_link_name_space(home.as_fd(), kind)?;
    child
}

/// Makes a terminal and sends its master to whoever listens at `socket`; the other side, raw, as the guest has a terminal
/// of its own that echoes and edits.
fn terminal_for(socket: &Path) -> Result<OwnedFd, OciError> {
    let make = || -> std::io::Result<OwnedFd> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let name = name.to_string_lossy().into_owned();
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let slave = rustix::fs::open(&name, flags, Mode::empty())?;
        let mut settings = termios::tcgetattr(&slave)?;
        settings.make_raw();
        termios::tcsetattr(&slave, termios::OptionalActions::Now, &settings)?;
        let socket = UnixStream::connect(socket)?;
        kernel::send_descriptor(&socket, &master, &name)?;
        Ok(slave)
    };
    make().map_err(OciError::host(format!(
        "send the terminal to {}",
        socket.display()
    )))
}
