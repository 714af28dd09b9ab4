//! Where errors are told: `--log` and `--log-format`, as runc writes them, and standard error.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
    time::SystemTime,
};

use clap::ValueEnum;

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// `time="…" level=error msg="…"`.
    #[default]
    Text,
    /// `{"level":"error","msg":"…","time":"…"}`.
    Json,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    file: Option<File>,
    format: Format,
}

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// What was asked for did not happen.
    Error,
    /// Odd, but handled.
    Warning,
    /// A step done, for `--debug`.
    Debug,
}

impl Log {
    /// Appends to `file`, if one is given.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(file: Option<&Path>, format: Format) -> io::Result<Self> {
        let open = |path| File::options().append(true).create(true).open(path);
        let file = file
            .filter(|path| !path.as_os_str().is_empty())
            .map(open)
            .transpose()?;
        Ok(Self { file, format })
    }

    /// Tells the user and, as engines read it there, the log: without a log file, standard error gets the log's line.
    pub fn tell(&self, level: Level, message: &str) {
        let line = line(self.format, level, message, SystemTime::now());
        let Some(mut file) = self.file.as_ref() else {
            // Nobody to tell is no reason to fail.
            let _ = io::stderr().write_all(line.as_bytes());
            return;
        };
        let _ = file.write_all(line.as_bytes());
        if level == Level::Error {
            let _ = writeln!(io::stderr(), "{message}");
        }
    }
}

fn line(format: Format, level: Level, message: &str, time: SystemTime) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warning => "warning",
        Level::Debug => "debug",
    };
    let time = humantime::format_rfc3339_seconds(time);
    match format {
        Format::Json => {
            let line =
                serde_json::json!({"level": level, "msg": message, "time": time.to_string()});
            format!("{line}\n")
        }
        Format::Text => format!("time=\"{time}\" level={level} msg={message:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_runcs() {
        let line = |format| line(format, Level::Error, "a \"b\"", SystemTime::UNIX_EPOCH);
        assert_eq!(
            line(Format::Json),
            "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\",\"time\":\"1970-01-01T00:00:00Z\"}\n"
        );
        assert_eq!(
            line(Format::Text),
            "time=\"1970-01-01T00:00:00Z\" level=error msg=\"a \\\"b\\\"\"\n"
        );
    }

    #[test]
    fn a_log_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for message in ["one", "two"] {
            let log = Log::open(Some(&path), Format::Json).unwrap();
            log.tell(Level::Error, message);
        }
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 2);
    }
}
