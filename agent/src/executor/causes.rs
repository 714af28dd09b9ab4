//! libcontainer logs the details of what failed and returns only the outermost text; this sends the details to the agent.

use std::fmt::{Debug, Write};
use std::os::fd::RawFd;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::Report;
use super::channel::send_on;

/// Sends every error event as a [`Report::Cause`]; works in forks of this process too.
pub struct Causes {
    report: RawFd,
}

impl Causes {
    /// Sends on this descriptor from now on, for the rest of the process' life.
    pub fn send_on(report: RawFd) {
        // There is no other: this process has just begun.
        let _ = tracing::subscriber::set_global_default(Self { report });
    }
}

impl Subscriber for Causes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::ERROR
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}", line.message, line.fields)
            .chars()
            .take(1000)
            .collect();
        // The agent may be gone; then nobody wants to know.
        let _ = send_on(self.report, &Report::Cause(text), &[]);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Writing to a String can't fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
