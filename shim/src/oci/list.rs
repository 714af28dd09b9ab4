//! `list`: the containers of a root.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    Context,
    args::{ListArgs, TableFormat},
    error::OciError,
    record::State,
    store,
};

/// Prints them as runc does.
///
/// # Errors
/// The root can't be read.
pub fn list(context: &Context, args: &ListArgs) -> Result<(), OciError> {
    let records = store::all(&context.root)?;
    let states: Vec<State> = records
        .iter()
        .map(|record| record.state(record.status()))
        .collect();
    if args.quiet {
        let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        return write(ids.iter().map(|id| format!("{id}\n")).collect());
    }
    match args.format {
        TableFormat::Json => line(&states),
        TableFormat::Table => write(table(&states)),
    }
}

/// Writes text to standard output.
///
/// # Errors
/// Nobody takes it.
pub fn write(text: String) -> Result<(), OciError> {
    io::stdout()
        .write_all(text.as_bytes())
        .map_err(OciError::host("print"))
}

/// Writes JSON as a line, for programs.
///
/// # Errors
/// Nobody takes it.
pub fn line(value: &impl Serialize) -> Result<(), OciError> {
    let json = serde_json::to_string(value).map_err(io::Error::from);
    write(json.map_err(OciError::host("print"))? + "\n")
}

fn table(states: &[State]) -> String {
    let columns = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"];
    let mut rows = vec![columns.map(str::to_owned)];
    rows.extend(states.iter().map(|state| {
        [
            state.id.to_owned(),
            state.pid.to_string(),
            state.status.to_owned(),
            state.bundle.display().to_string(),
            state.created.to_owned(),
            state.owner.clone(),
        ]
    }));
    aligned(&rows)
}

/// Columns as wide as their widest cell and three spaces, at least 12 (runc's tabwriter).
fn aligned(rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        let widest = rows.iter().map(|row| row[column].chars().count()).max();
        (widest.unwrap_or(0) + 3).max(12)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let line = |row: &[String; 6]| {
        let cells = row.iter().zip(&widths);
        let text: String = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", text.trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_runcs() {
        let row = |cells: [&str; 6]| cells.map(str::to_owned);
        let rows = [
            row(["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]),
            row(["web", "42", "running", "/a/long/bundle", "now", "root"]),
        ];
        assert_eq!(
            aligned(&rows),
            "ID          PID         STATUS      BUNDLE           CREATED     OWNER\n\
             web         42          running     /a/long/bundle   now         root\n"
        );
    }
}
