//! Sends a command to the virtual host and passes on what it prints.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::wire::{Frame, Order};
use crate::streams::Streams;

/// Runs `order` in the host behind `port`, and returns its exit code.
///
/// `console` is named when the host dies meanwhile: there it says why.
pub fn run(port: u16, order: Order, streams: &mut Streams, console: &Path) -> Result<i32> {
    let program = order.argv.first().cloned().unwrap_or_default();
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("reach the virtual host")?;
    stream.set_nodelay(true)?;
    Frame::Start(order).write(&mut stream)?;
    let sending = Arc::new(Mutex::new(stream.try_clone()?));
    if streams.stdin {
        let sending = sending.clone();
        // Ends with this process: a read from a terminal can't be interrupted otherwise.
        thread::spawn(move || send_stdin(&sending));
    } else {
        send(&sending, &Frame::StdinEnd)?;
    }
    thread::spawn(move || tick(&sending));
    let ended = receive(&mut stream, streams, &program, console);
    // The threads have the connection too: with this they lose it.
    let _ = stream.shutdown(Shutdown::Both);
    ended
}

fn receive(
    stream: &mut TcpStream,
    streams: &mut Streams,
    program: &str,
    console: &Path,
) -> Result<i32> {
    loop {
        let frame = Frame::read(stream).with_context(|| {
            let console = console.display();
            format!("the virtual host died while it ran {program}, see {console}")
        })?;
        match frame {
            Frame::Stdout(bytes) => show(&mut streams.stdout, &bytes)?,
            Frame::Stderr(bytes) => show(&mut streams.stderr, &bytes)?,
            Frame::Exit(code) => return Ok(code),
            Frame::Refused(reason) => bail!("the virtual host refused: {reason}"),
            other => bail!("the virtual host sent {other:?}"),
        }
    }
}

/// The emulator loses an interrupt once in dozens of guests: the thread of its timers sets a bit in the very word that a
/// guest's exit changes without a lock (`interrupt_request` in `do_vmexit` of QEMU 7.2's svm_helper.c; later ones take
/// it). If that was the host's timer, and the guest spins with interrupts off, the host gets no time again before another
/// interrupt comes. What arrives by network is one.
const TICK: Duration = Duration::from_secs(1);

/// Sends a tick each second until the connection ends.
fn tick(sending: &Mutex<TcpStream>) {
    while send(sending, &Frame::Tick).is_ok() {
        thread::sleep(TICK);
    }
}

fn send(sending: &Mutex<TcpStream>, frame: &Frame) -> io::Result<()> {
    let mut stream = sending.lock().unwrap_or_else(PoisonError::into_inner);
    frame.write(&mut *stream)
}

/// How long a host may take to run `true` before it counts as wedged; a busy one takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the host behind `port` still runs commands.
pub fn answers(port: u16, token: &str) -> bool {
    run_true(port, token).unwrap_or(false)
}

fn run_true(port: u16, token: &str) -> Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let order = Order {
        token: token.to_owned(),
        argv: vec!["true".into()],
        environment: Vec::new(),
        directory: "/".into(),
    };
    Frame::Start(order).write(&mut stream)?;
    Frame::StdinEnd.write(&mut stream)?;
    Ok(matches!(Frame::read(&mut stream)?, Frame::Exit(0)))
}

fn show(to: &mut impl io::Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)?;
    Ok(to.flush()?)
}

fn send_stdin(sending: &Mutex<TcpStream>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
        if send(sending, &Frame::Stdin(buffer[..length].to_vec())).is_err() {
            return;
        }
    }
    let _ = send(sending, &Frame::StdinEnd);
}
