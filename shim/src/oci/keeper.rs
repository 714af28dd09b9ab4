//! The keeper: the small process of the host that stands for one process of a guest. It has its pid, its streams and its
//! signals, ends with its exit status, and takes it along when it is killed.
//!
//! ```text
//! create ─ spawns ─► ready ─ go ─► accepts the agent's connections ─► has the container's files for its root
//!        ─► copies, forwards ─► exit status ─► exits with it
//! ```
//! One thread, one poll(2), no runtime: there is one keeper for each container and each exec.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    thread::{LinkNameSpaceType, UnshareFlags},
};
use vmbox_protocol::keeper::{Ended, MAX_MESSAGE, Wish};

use super::{
    kernel,
    pump::{Pump, Sink},
    store::EXIT,
    view::View,
};
use crate::user::one_line;

/// As if killed: the guest is gone.
const LOST: u8 = 137;
/// What a guest had written when it was lost is handed on for this long.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The hidden verb.
pub const VERB: &str = "keeper";
/// On the birth socket: the keeper is ready.
pub const READY: u8 = b'r';
/// On the birth socket: the process exists, and what follows is a [`View`].
pub const GO: u8 = b'g';

/// What a keeper is told on its command line: `name=value`, descriptors as numbers.
struct Orders(HashMap<String, String>);

impl Orders {
    fn parse(words: impl Iterator<Item = String>) -> Self {
        let pairs = words.filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        });
        Self(pairs.collect())
    }

    fn number(&self, name: &str) -> Option<RawFd> {
        self.0.get(name)?.parse().ok()
    }

    fn descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let number = self.number(name)?;
        self.0.remove(name);
        // SAFETY: whoever executed us passed this descriptor for us to own, and it is taken once.
        Some(unsafe { OwnedFd::from_raw_fd(number) })
    }

    /// The numbers that are descriptors.
    fn descriptors(&self) -> Vec<RawFd> {
        let names = [
            "birth", "keeper", "stdin", "stdout", "stderr", "console", "lifeline",
        ];
        names.iter().filter_map(|name| self.number(name)).collect()
    }
}

/// Runs a keeper to its end; the exit code of the process.
pub fn main(words: impl Iterator<Item = String>) -> u8 {
    let mut orders = Orders::parse(words);
    kernel::close_all_but(&orders.descriptors());
    let Some(birth) = orders.descriptor("birth") else {
        return 1;
    };
    let mut birth = UnixStream::from(birth);
    let prepared = match prepare(&mut orders) {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = birth.write_all(error.to_string().as_bytes());
            return 1;
        }
    };
    let Some(view) = wait_for_process(&mut birth) else {
        // Whoever made us has failed, or died.
        return 1;
    };
    let settled = Keeper::attach(prepared, &mut orders).and_then(|keeper| {
        view.and_then(|view| view.enter().map_err(io::Error::other))?;
        Ok(keeper)
    });
    let mut keeper = match settled {
        Ok(keeper) => keeper,
        Err(error) => {
            let _ = birth.write_all(one_line(&error).as_bytes());
            return LOST;
        }
    };
    drop(birth);
    kernel::forget_code();
    let (code, orderly) = keeper.run();
    if let (true, Some(dir)) = (orderly, &keeper.prepared.dir) {
        // A container without it is one whose end nobody saw.
        let _ = write_exit(dir, code);
    }
    code
}

/// Says that we are ready; whose files we are to show, once the process exists.
fn wait_for_process(birth: &mut UnixStream) -> Option<io::Result<View>> {
    let mut told = [0];
    birth.write_all(&[READY]).ok()?;
    birth.read_exact(&mut told).ok()?;
    let mut rest = Vec::new();
    birth.read_to_end(&mut rest).ok()?;
    (told == [GO]).then(|| View::from_bytes(&rest))
}

fn write_exit(dir: &OwnedFd, code: u8) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = openat(dir, EXIT, flags, Mode::from_raw_mode(0o644))?;
    writeln!(File::from(file), "{code}")
}

/// What can be done before the process exists.
struct Prepared {
    signals: File,
    console: Option<OwnedFd>,
    /// Held, never used: the VM lives as long as somebody holds it.
    _lifeline: Option<OwnedFd>,
    /// Of the container: the host's paths don't lead there later.
    dir: Option<OwnedFd>,
}

fn prepare(orders: &mut Orders) -> io::Result<Prepared> {
    let signals = File::from(kernel::take_signals()?);
    // A session of our own: the signals of a terminal that we only hold for somebody are not ours.
    rustix::process::setsid()?;
    let console = orders.descriptor("console");
    if let Some(console) = &console {
        rustix::process::ioctl_tiocsctty(console)?;
        // The container's streams are these alone: whoever reads those of our parent is not to wait for us.
        rustix::stdio::dup2_stdin(console)?;
        rustix::stdio::dup2_stdout(console)?;
        rustix::stdio::dup2_stderr(console)?;
    }
    match orders.0.get("netns").map(String::as_str) {
        None => {}
        // SAFETY: NEWNET changes no descriptor and no memory, and there is one thread.
        Some("new") => unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?,
        Some(path) => {
            let namespace = File::open(path)?;
            let kind = Some(LinkNameSpaceType::Network);
            rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?;
        }
    }
    std::env::set_current_dir("/")?;
    let dir = orders.0.get("dir").map(File::open).transpose()?;
    Ok(Prepared {
        signals,
        console,
        _lifeline: orders.descriptor("lifeline"),
        dir: dir.map(OwnedFd::from),
    })
}

struct Keeper {
    prepared: Prepared,
    agent: UnixStream,
    /// What the agent said, up to a whole line.
    heard: Vec<u8>,
    /// What the agent has not taken yet.
    unsaid: Vec<u8>,
    input: Option<Pump>,
    outputs: Vec<Pump>,
    ended: Option<u8>,
    /// The agent is gone, and this is how long we wait for what it had sent.
    lost: Option<Instant>,
    terminal: bool,
}

impl Keeper {
    /// Takes the connections, which the agent has made before it said that the process exists.
    fn attach(prepared: Prepared, orders: &mut Orders) -> io::Result<Self> {
        let agent = accept(orders, "keeper")?.ok_or(io::ErrorKind::NotConnected)?;
        let stdin = accept(orders, "stdin")?;
        let stdout = accept(orders, "stdout")?;
        let stderr = accept(orders, "stderr")?;
        let (ours, outs) = match &prepared.console {
            Some(console) => (
                console.try_clone()?,
                [
                    Sink::Own(console.try_clone()?),
                    Sink::Own(console.try_clone()?),
                ],
            ),
            None => (
                rustix::stdio::stdin().try_clone_to_owned()?,
                [
                    Sink::inherited(rustix::stdio::stdout())?,
                    Sink::inherited(rustix::stdio::stderr())?,
                ],
            ),
        };
        let outputs = [stdout, stderr].into_iter().zip(outs);
        let outputs = outputs.filter_map(|(socket, sink)| Some(Pump::out_of(socket?, sink)));
        let mut keeper = Self {
            terminal: prepared.console.is_some() || orders.0.contains_key("terminal"),
            prepared,
            agent,
            heard: Vec::new(),
            unsaid: Vec::new(),
            input: stdin.map(|socket| Pump::into(ours, socket)),
            outputs: outputs.collect(),
            ended: None,
            lost: None,
        };
        keeper.resize();
        Ok(keeper)
    }

    /// Until the process has ended and all of its output has been handed on: its exit code, and whether the agent said so.
    fn run(&mut self) -> (u8, bool) {
        loop {
            if let Some(code) = self.ended
                && self.outputs.is_empty()
            {
                return (code, self.lost.is_none());
            }
            if self.lost.is_some_and(|deadline| Instant::now() >= deadline) {
                return (LOST, false);
            }
            self.wait();
            self.forward_signals();
            self.speak();
            if self.ended.is_none() {
                self.listen();
            }
            self.copy();
        }
    }

    fn wait(&self) {
        let mut agent = PollFlags::empty();
        agent.set(PollFlags::IN, self.ended.is_none());
        agent.set(PollFlags::OUT, !self.unsaid.is_empty());
        let mut fds = vec![PollFd::new(&self.prepared.signals, PollFlags::IN)];
        if !agent.is_empty() {
            fds.push(PollFd::new(&self.agent, agent));
        }
        let pumps = self.input.iter().chain(&self.outputs);
        fds.extend(pumps.flat_map(Pump::interests));
        let timeout = self.lost.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        // Whatever came of it, everything is tried.
        let _ = rustix::event::poll(&mut fds, timeout.as_ref());
    }

    fn forward_signals(&mut self) {
        while let Some(signal) = kernel::next_signal(&self.prepared.signals) {
            if signal == libc::SIGWINCH.cast_unsigned() && self.terminal {
                self.resize();
            } else {
                self.unsaid.extend(Wish::Signal(signal).to_string().bytes());
            }
        }
    }

    fn resize(&mut self) {
        let fds: Vec<BorrowedFd<'_>> = match &self.prepared.console {
            Some(console) => vec![console.as_fd()],
            None if self.terminal => vec![rustix::stdio::stdin(), rustix::stdio::stdout()],
            None => return,
        };
        let mut sizes = fds
            .iter()
            .filter_map(|fd| rustix::termios::tcgetwinsize(fd).ok());
        if let Some(size) = sizes.find(|size| size.ws_col > 0 && size.ws_row > 0) {
            let wish = Wish::Resize {
                columns: size.ws_col.into(),
                rows: size.ws_row.into(),
            };
            self.unsaid.extend(wish.to_string().bytes());
        }
    }

    fn speak(&mut self) {
        while !self.unsaid.is_empty() {
            match self.agent.write(&self.unsaid) {
                Ok(count) => drop(self.unsaid.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What it was to hear no longer matters; its silence is noticed where we listen.
                Err(_) => return self.unsaid.clear(),
            }
        }
    }

    fn listen(&mut self) {
        let mut block = [0; MAX_MESSAGE];
        loop {
            match self.agent.read(&mut block) {
                Ok(count @ 1..) => self.heard.extend_from_slice(&block[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) | Err(_) => {
                    self.hear();
                    if self.ended.is_none() {
                        self.ended = Some(LOST);
                        self.lost = Some(Instant::now() + LAST_WORDS);
                    }
                    return;
                }
            }
        }
        self.hear();
    }

    fn hear(&mut self) {
        let Some(end) = self.heard.iter().position(|byte| *byte == b'\n') else {
            return;
        };
        let line = String::from_utf8_lossy(&self.heard[..end]);
        if let Ok(Ended { status, .. }) = line.parse() {
            self.ended = Some(u8::try_from(status).unwrap_or(u8::MAX));
        }
    }

    fn copy(&mut self) {
        if self.input.as_mut().is_some_and(|pump| !pump.turn()) {
            self.input = None;
        }
        self.outputs.retain_mut(Pump::turn);
    }
}

fn accept(orders: &mut Orders, name: &str) -> io::Result<Option<UnixStream>> {
    let Some(listener) = orders.descriptor(name) else {
        return Ok(None);
    };
    let (stream, _) = UnixListener::from(listener).accept()?;
    stream.set_nonblocking(true)?;
    Ok(Some(stream))
}

/// Reads as poll(2)ed: `None` when there is nothing now.
pub(super) fn unless_it_would_block(result: Result<usize, Errno>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
