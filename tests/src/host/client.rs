//! Sends a command to the virtual host and passes on what it prints.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::thread;

use anyhow::{Context as _, Result, bail};

use super::wire::{Frame, Order};

/// Where a command's streams go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// stdout and stderr to ours; stdin is empty.
    Shown,
    /// As `Shown`, and stdin comes from ours.
    Connected,
}

/// Runs `order` in the host behind `port`, and returns its exit code.
///
/// `console` is named when the host dies meanwhile: there it says why.
pub fn run(port: u16, order: Order, output: Output, console: &Path) -> Result<i32> {
    let program = order.argv.first().cloned().unwrap_or_default();
    let mut stream =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("reach the virtual host")?;
    stream.set_nodelay(true)?;
    Frame::Start(order).write(&mut stream)?;
    match output {
        Output::Shown => Frame::StdinEnd.write(&mut stream)?,
        Output::Connected => {
            let stream = stream.try_clone()?;
            // Ends with this process: a read from a terminal can't be interrupted otherwise.
            thread::spawn(move || send_stdin(stream));
        }
    }
    loop {
        let frame = Frame::read(&mut stream).with_context(|| {
            let console = console.display();
            format!("the virtual host died while it ran {program}, see {console}")
        })?;
        match frame {
            Frame::Stdout(bytes) => show(&mut io::stdout(), &bytes)?,
            Frame::Stderr(bytes) => show(&mut io::stderr(), &bytes)?,
            Frame::Exit(code) => return Ok(code),
            Frame::Refused(reason) => bail!("the virtual host refused: {reason}"),
            other => bail!("the virtual host sent {other:?}"),
        }
    }
}

fn show(to: &mut impl io::Write, bytes: &[u8]) -> Result<()> {
    to.write_all(bytes)?;
    Ok(to.flush()?)
}

fn send_stdin(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = io::stdin().read(&mut buffer) {
        if Frame::Stdin(buffer[..length].to_vec())
            .write(&mut stream)
            .is_err()
        {
            return;
        }
    }
    let _ = Frame::StdinEnd
        .write(&mut stream)
        .and_then(|()| stream.flush());
}
