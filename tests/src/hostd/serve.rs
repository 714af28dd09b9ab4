//! The daemon of the virtual host: runs a command per connection and sends back what it prints.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::READY;
use crate::host::wire::{Frame, Order, PORT};

type Peer = Arc<Mutex<TcpStream>>;

/// Listens and serves for ever.
pub fn run() -> Result<()> {
    let token = std::env::var("VMBOX_HOST_TOKEN").context("VMBOX_HOST_TOKEN")?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).context("listen")?;
    println!("{READY}");
    for stream in listener.incoming() {
        let stream = stream?;
        let token = token.clone();
        thread::spawn(move || {
            if let Err(error) = converse(stream, &token) {
                eprintln!("vmbox-host: {error:#}");
            }
        });
    }
    Ok(())
}

/// One connection: one command.
fn converse(mut stream: TcpStream, token: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let Frame::Start(order) = Frame::read(&mut stream)? else {
        anyhow::bail!("a connection that doesn't begin with an order");
    };
    let peer = Arc::new(Mutex::new(stream.try_clone()?));
    if order.token != token {
        return send(&peer, &Frame::Refused("wrong token".into()));
    }
    let child = match spawn(&order) {
        Ok(child) => child,
        Err(error) => {
            let reason = format!("{}: {error}", order.argv.first().map_or("", |s| s));
            return send(&peer, &Frame::Refused(reason));
        }
    };
    attend(child, stream, &peer)
}

fn spawn(order: &Order) -> io::Result<Child> {
    let [program, arguments @ ..] = order.argv.as_slice() else {
        return Err(io::Error::other("no program named"));
    };
    Command::new(program)
        .args(arguments)
        .env_remove("VMBOX_HOST_TOKEN")
        .envs(order.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&order.directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
}

/// Carries bytes both ways; the exit code follows the last byte of both streams.
fn attend(mut child: Child, stream: TcpStream, peer: &Peer) -> Result<()> {
    let group = Pid::from_raw(i32::try_from(child.id())?);
    let stdin = child.stdin.take().context("no stdin")?;
    let ended = Arc::new(AtomicBool::new(false));
    let seen = ended.clone();
    thread::spawn(move || listen(stream, stdin, group, &seen));
    let stdout = pump(
        child.stdout.take().context("no stdout")?,
        peer,
        Frame::Stdout,
    );
    let stderr = pump(
        child.stderr.take().context("no stderr")?,
        peer,
        Frame::Stderr,
    );
    let status = child.wait()?;
    ended.store(true, Ordering::SeqCst);
    for stream in [stdout, stderr] {
        let _ = stream.join();
    }
    let signalled = status.signal().map(|signal| 128 + signal);
    let code = status.code().or(signalled).unwrap_or(255);
    send(peer, &Frame::Exit(code))
}

/// Reads what the client sends; when the client goes away, so does the command.
fn listen(
    mut stream: TcpStream,
    stdin: impl Write + Send + 'static,
    group: Pid,
    ended: &AtomicBool,
) {
    let (bytes, queue) = mpsc::channel::<Vec<u8>>();
    thread::spawn(move || feed(stdin, &queue));
    let mut bytes = Some(bytes);
    loop {
        match Frame::read(&mut stream) {
            Ok(Frame::Stdin(chunk)) => {
                // A command that closed its stdin loses the rest, as it would in a pipe.
                let _ = bytes.as_ref().map(|bytes| bytes.send(chunk));
            }
            Ok(Frame::StdinEnd) => bytes = None,
            Ok(_) => {}
            Err(_) => {
                if !ended.load(Ordering::SeqCst) {
                    let _ = killpg(group, Signal::SIGKILL);
                }
                return;
            }
        }
    }
}

/// On a thread of its own, so that a command that doesn't read can still be ended.
fn feed(mut stdin: impl Write, queue: &mpsc::Receiver<Vec<u8>>) {
    while let Ok(chunk) = queue.recv() {
        if stdin.write_all(&chunk).is_err() {
            return;
        }
    }
}

fn pump(
    mut from: impl Read + Send + 'static,
    peer: &Peer,
    frame: fn(Vec<u8>) -> Frame,
) -> thread::JoinHandle<()> {
    let peer = peer.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            if send(&peer, &frame(buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    })
}

fn send(peer: &Peer, frame: &Frame) -> Result<()> {
    let mut stream = peer.lock().unwrap_or_else(PoisonError::into_inner);
    frame.write(&mut *stream).context("the client went away")
}
