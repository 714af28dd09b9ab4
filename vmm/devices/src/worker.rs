//! The only device loop: one thread that waits for kicks and other descriptors and calls handlers.
//!
//! ```text
//!  transport ── attach / detach ──►┌────────┐
//!  driver ──────── kick eventfd ──►│ Worker │──► Handler::serve(event)
//!  handler's own descriptors ─────►└────────┘
//! ```
//!
//! It stands on epoll as the rust-vmm event-manager does, but keys events by registration instead of by
//! descriptor number: a handler may close a descriptor and get the same number back for another one within a
//! single `serve`, which event-manager answers with a stale table or a panic.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel,
};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::device::{Event, Handler, Interrupt, Served, Source};

/// Handlers are shallow; the default of 2 MiB would only be address space, but a limit keeps it that way.
const STACK_BYTES: usize = 256 * 1024;
/// Events taken from the kernel at once.
const BATCH: usize = 32;
/// The key of the worker's own wake-up; registrations count up from one.
const WAKE: u64 = 0;

/// How long [`WorkerHandle::pause`] waits for a handler.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

/// A device is still busy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device did not stop within {} s", PAUSE_DEADLINE.as_secs())]
pub struct NotPaused;

/// A thread that serves handlers. Dropping it stops and joins the thread and drops what it served.
pub struct Worker {
    handle: WorkerHandle,
    thread: Option<JoinHandle<()>>,
}

/// Talks to a [`Worker`]. May outlive it: then nothing is served any more.
#[derive(Clone)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    next_id: Arc<AtomicU64>,
}

/// A handler being served. Dropping it waits until the worker has dropped the handler.
#[must_use = "dropping it detaches the handler"]
pub struct Attachment {
    id: u64,
    worker: WorkerHandle,
}

impl Worker {
    /// Starts a thread of this name (at most 15 bytes are shown by the kernel).
    ///
    /// # Errors
    /// No thread, epoll or event descriptor could be made.
    pub fn spawn(name: &str) -> io::Result<Self> {
        let (sender, commands) = channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let epoll = Epoll::new()?;
        epoll.ctl(
            ControlOperation::Add,
            wake.as_raw_fd(),
            EpollEvent::new(EventSet::IN, WAKE),
        )?;
        let handle = WorkerHandle {
            commands: sender,
            wake: wake.clone(),
            next_id: Arc::new(AtomicU64::new(0)),
        };
        let device_loop = Loop {
            serving: HashMap::new(),
            reasons: HashMap::new(),
            next_key: WAKE + 1,
            epoll,
            wake,
            paused: false,
            commands,
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || device_loop.run())?;
        Ok(Self {
            handle,
            thread: Some(thread),
        })
    }

    /// A handle to attach handlers with.
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.send(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a device worker panicked");
        }
    }
}

impl WorkerHandle {
    /// Serves `handler` from now on: [`Event::Queue`] with the number beside each of `kicks` that is written
    /// to, [`Event::Source`] for its own sources. If that fails or the handler says [`Served::Broken`],
    /// `interrupt` is asked for a reset. Does not wait.
    pub fn attach(
        &self,
        handler: Box<dyn Handler>,
        kicks: Vec<(u16, Arc<EventFd>)>,
        interrupt: Arc<dyn Interrupt>,
    ) -> Attachment {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Attach {
            id,
            serving: Serving {
                handler,
                kicks,
                interrupt,
                kick_keys: Vec::new(),
                sources: Vec::new(),
            },
        });
        Attachment {
            id,
            worker: self.clone(),
        }
    }

    /// Stops serving; returns when no handler is being called any more. What happens meanwhile is served
    /// after [`WorkerHandle::resume`].
    ///
    /// # Errors
    /// [`NotPaused`]: a handler has not returned for five seconds. It stops when it does, unless it is resumed.
    pub fn pause(&self) -> Result<(), NotPaused> {
        match self
            .ask(|done| Command::Pause { done })
            .recv_timeout(PAUSE_DEADLINE)
        {
            // If the worker is gone, nothing is served for good.
            Ok(()) | Err(RecvTimeoutError::Disconnected) => Ok(()),
            Err(RecvTimeoutError::Timeout) => Err(NotPaused),
        }
    }

    /// Serves again.
    pub fn resume(&self) {
        self.send(Command::Resume);
    }

    fn send(&self, command: Command) {
        // If the worker is gone there is nothing left to be done for any command.
        if self.commands.send(command).is_ok()
            && let Err(e) = self.wake.write(1)
        {
            // WouldBlock: the counter is full, so the worker is about to wake.
            debug_assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
        }
    }

    fn ask(&self, command: impl FnOnce(SyncSender<()>) -> Command) -> Receiver<()> {
        let (done, wait) = sync_channel(1);
        self.send(command(done));
        wait
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let id = self.id;
        let detached = self.worker.ask(|done| Command::Detach { id, done });
        // An error says that the worker is gone, and with it all it served.
        let _ = detached.recv();
    }
}

/// Why the loop does something else than serve.
enum Command {
    Attach { id: u64, serving: Serving },
    Detach { id: u64, done: SyncSender<()> },
    Pause { done: SyncSender<()> },
    Resume,
    Stop,
}

/// One attached handler.
struct Serving {
    handler: Box<dyn Handler>,
    kicks: Vec<(u16, Arc<EventFd>)>,
    interrupt: Arc<dyn Interrupt>,
    kick_keys: Vec<u64>,
    sources: Vec<(u64, Source)>,
}

/// What a registered descriptor means, and to which attachment.
struct Reason {
    owner: u64,
    wake: Wake,
}

enum Wake {
    Kick(u16),
    Source(u64),
}

/// The thread's state. Handlers are dropped before `commands`, so whoever finds the channel closed knows that
/// they are gone.
struct Loop {
    serving: HashMap<u64, Serving>,
    reasons: HashMap<u64, Reason>,
    next_key: u64,
    epoll: Epoll,
    wake: Arc<EventFd>,
    paused: bool,
    commands: Receiver<Command>,
}

impl Loop {
    fn run(mut self) {
        while let Some(command) = self.next_command() {
            match command {
                Command::Attach { id, serving } => self.attach(id, serving),
                Command::Detach { id, done } => {
                    self.stop_waking(id);
                    self.serving.remove(&id);
                    let _ = done.send(());
                }
                Command::Pause { done } => {
                    self.paused = true;
                    let _ = done.send(());
                }
                Command::Resume => self.paused = false,
                Command::Stop => return,
            }
        }
    }

    /// Serves until there is a command; `None` when there can't be any more.
    fn next_command(&mut self) -> Option<Command> {
        if self.paused {
            return self.commands.recv().ok();
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => return Some(command),
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {}
            }
            if let Err(e) = self.wait_and_dispatch() {
                tracing::error!(error = %e, "a device worker can't wait for events");
                return None;
            }
        }
    }

    fn wait_and_dispatch(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            Err(e) => return Err(e),
        };
        for event in events.iter().take(count) {
            match event.data() {
                // The command itself is taken by the caller; WouldBlock can't matter.
                WAKE => drop(self.wake.read()),
                key => self.dispatch(key, event.events()),
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, key: u64, flags: u32) {
        // A handler called earlier in this batch may have dropped the source: then its key is gone.
        let Some(reason) = self.reasons.get(&key) else {
            return;
        };
        let owner = reason.owner;
        let event = match reason.wake {
            Wake::Kick(index) => Event::Queue(index),
            Wake::Source(token) => source_event(token, flags),
        };
        let Some(serving) = self.serving.get_mut(&owner) else {
            return;
        };
        match serving.handler.serve(event) {
            Served::Done => {}
            Served::SourcesChanged => {
                if let Err(e) = self.update_sources(owner) {
                    self.give_up(owner, &e.to_string());
                }
            }
            Served::Broken => self.give_up(owner, "the driver's rings are broken"),
        }
    }

    fn attach(&mut self, id: u64, serving: Serving) {
        let kicks = serving.kicks.clone();
        self.serving.insert(id, serving);
        let registered = kicks
            .into_iter()
            .try_for_each(|(index, kick)| self.register_kick(id, index, &kick))
            .and_then(|()| self.update_sources(id));
        if let Err(e) = registered {
            self.give_up(id, &e.to_string());
        }
    }

    /// The handler stays, idle, until the transport detaches it at the driver's reset.
    fn give_up(&mut self, id: u64, reason: &str) {
        self.stop_waking(id);
        if let Some(serving) = self.serving.get(&id) {
            if serving.interrupt.may_warn() {
                tracing::warn!(reason, "a device needs a reset");
            }
            serving.interrupt.needs_reset();
        }
    }

    fn stop_waking(&mut self, id: u64) {
        let Some(serving) = self.serving.get_mut(&id) else {
            return;
        };
        let sources = std::mem::take(&mut serving.sources);
        let kicks = std::mem::take(&mut serving.kicks);
        let kick_keys = std::mem::take(&mut serving.kick_keys);
        let kick_fds = kicks.iter().map(|(_, kick)| kick.as_raw_fd());
        for (key, fd) in kick_keys.into_iter().zip(kick_fds) {
            self.unregister(key, fd);
        }
        for (key, source) in sources {
            self.unregister(key, source.fd);
        }
    }

    /// Makes the kernel's set match what the handler lists now. A source that is the same as before, in all
    /// its parts, keeps its registration.
    fn update_sources(&mut self, id: u64) -> io::Result<()> {
        let Some(serving) = self.serving.get_mut(&id) else {
            return Ok(());
        };
        let before = std::mem::take(&mut serving.sources);
        let wanted = serving.handler.sources();
        let still: HashMap<RawFd, Source> = wanted.iter().map(|s| (s.fd, *s)).collect();
        let mut now = HashMap::with_capacity(wanted.len());
        for (key, source) in before {
            if still.get(&source.fd) == Some(&source) {
                now.insert(source.fd, (key, source));
            } else {
                self.unregister(key, source.fd);
            }
        }
        let mut result = Ok(());
        // Even after a failure every registration must be in `now`, or it could never be undone.
        for source in still.into_values().filter(|s| s.read || s.write) {
            if let Entry::Vacant(vacant) = now.entry(source.fd) {
                match self.register_source(id, source) {
                    Ok(key) => drop(vacant.insert((key, source))),
                    Err(e) => result = Err(e),
                }
            }
        }
        if let Some(serving) = self.serving.get_mut(&id) {
            serving.sources = now.into_values().collect();
        }
        result
    }

    fn register_kick(&mut self, owner: u64, index: u16, kick: &EventFd) -> io::Result<()> {
        let fd = kick.as_raw_fd();
        // Edge-triggered: each write to an eventfd is an edge, whatever it holds already, and it never has to be read.
        let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let key = self.register(owner, fd, edges, Wake::Kick(index))?;
        if let Some(serving) = self.serving.get_mut(&owner) {
            serving.kick_keys.push(key);
        }
        Ok(())
    }

    fn register_source(&mut self, owner: u64, source: Source) -> io::Result<u64> {
        let mut interest = EventSet::empty();
        interest.set(EventSet::IN, source.read);
        interest.set(EventSet::OUT, source.write);
        self.register(owner, source.fd, interest, Wake::Source(source.token))
    }

    fn register(&mut self, owner: u64, fd: RawFd, set: EventSet, wake: Wake) -> io::Result<u64> {
        let key = self.next_key;
        let event = EpollEvent::new(set, key);
        self.epoll.ctl(ControlOperation::Add, fd, event)?;
        self.next_key += 1;
        self.reasons.insert(key, Reason { owner, wake });
        Ok(key)
    }

    fn unregister(&mut self, key: u64, fd: RawFd) {
        self.reasons.remove(&key);
        // ENOENT and EBADF: the handler has closed it already, and the kernel has forgotten it.
        let _ = self
            .epoll
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}

fn source_event(token: u64, flags: u32) -> Event {
    let over = flags & (EventSet::ERROR | EventSet::HANG_UP).bits() != 0;
    Event::Source {
        token,
        readable: over || flags & EventSet::IN.bits() != 0,
        writable: over || flags & EventSet::OUT.bits() != 0,
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
