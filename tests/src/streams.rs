//! Where a command's output goes: to this terminal as it is, or line by line beside that of another, or into memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// How the test runner's closing line begins.
const CLOSING: &str = "test result:";

/// The streams of a command that runs elsewhere.
pub struct Streams {
    /// Whether it reads our stdin; if not, its own is empty.
    pub stdin: bool,
    /// Takes what it prints.
    pub stdout: Box<dyn Write + Send>,
    /// And what it complains about.
    pub stderr: Box<dyn Write + Send>,
}

impl Streams {
    /// To ours; stdin is empty.
    pub fn shown() -> Self {
        Self {
            stdin: false,
            stdout: Box::new(io::stdout()),
            stderr: Box::new(io::stderr()),
        }
    }

    /// To ours, and stdin comes from ours.
    pub fn connected() -> Self {
        Self {
            stdin: true,
            ..Self::shown()
        }
    }

    /// Stdout to `kept`, stderr to ours; stdin is empty.
    pub fn keeping(kept: &Arc<Mutex<Vec<u8>>>) -> Self {
        Self {
            stdout: Box::new(Kept(kept.clone())),
            ..Self::shown()
        }
    }

    /// To ours in whole lines, each with `label` before it, except the test runner's closing line: that is for `closing`.
    pub fn in_lines(label: &str, closing: &Arc<Mutex<String>>) -> Self {
        Self {
            stdin: false,
            stdout: Box::new(Lines::new(label, closing, io::stdout())),
            stderr: Box::new(Lines::new(label, closing, io::stderr())),
        }
    }
}

struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts a label before each line, and writes no line before it is whole.
struct Lines<W: Write> {
    label: String,
    closing: Arc<Mutex<String>>,
    pending: Vec<u8>,
    to: W,
}

impl<W: Write> Lines<W> {
    fn new(label: &str, closing: &Arc<Mutex<String>>, to: W) -> Self {
        Self {
            label: label.to_owned(),
            closing: closing.clone(),
            pending: Vec::new(),
            to,
        }
    }

    fn pass(&mut self, line: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(line);
        if text.starts_with(CLOSING) {
            *self.closing.lock().unwrap_or_else(PoisonError::into_inner) = text.trim_end().into();
            return Ok(());
        }
        // In one write, so that another's line does not come between.
        let whole = [self.label.as_bytes(), line].concat();
        self.to.write_all(&whole)
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            self.pass(&line)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.pending.push(b'\n');
            let rest = std::mem::take(&mut self.pending);
            let _ = self.pass(&rest).and_then(|()| self.to.flush());
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn passed(chunks: &[&[u8]]) -> (String, String) {
        let closing = Arc::new(Mutex::new(String::new()));
        let mut out = Vec::new();
        let mut lines = Lines::new("arm| ", &closing, &mut out);
        for chunk in chunks {
            lines.write_all(chunk).unwrap();
        }
        drop(lines);
        let closing = closing.lock().unwrap().clone();
        (String::from_utf8(out).unwrap(), closing)
    }

    #[test]
    fn each_line_is_labelled_once_however_it_arrives() {
        let (out, _) = passed(&[b"test a ... ", b"ok\ntest", b" b ... ok\n"]);
        assert_eq!(out, "arm| test a ... ok\narm| test b ... ok\n");
    }

    #[test]
    fn last_line_without_an_end_is_not_lost() {
        assert_eq!(passed(&[b"killed"]).0, "arm| killed\n");
    }

    #[test]
    fn closing_line_is_kept_for_the_end() {
        let (out, closing) = passed(&[b"x\ntest result: ok. 3 passed\n", b"more\n"]);
        assert_eq!(out, "arm| x\narm| more\n");
        assert_eq!(closing, "test result: ok. 3 passed");
    }
}
