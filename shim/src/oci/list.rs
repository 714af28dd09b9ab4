//! `list`: the containers of a root.

use std::io::{self, Write};

use serde_json::Value;

use super::{
    Context,
    args::{ListArgs, TableFormat},
    error::OciError,
    store, verbs,
};

/// Prints them as runc does.
///
/// # Errors
/// The root can't be read.
pub fn list(context: &Context, args: &ListArgs) -> Result<(), OciError> {
    let records = store::all(&context.root)?;
    let states: Vec<Value> = records
        .iter()
        .map(|record| record.state(record.status()))
        .collect();
    if args.quiet {
        let ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
        return write(ids.iter().map(|id| format!("{id}\n")).collect());
    }
    match args.format {
        TableFormat::Json => verbs::print(&Value::Array(states)),
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

fn table(states: &[Value]) -> String {
    let columns = ["id", "pid", "status", "bundle", "created", "owner"];
    let mut rows = vec![columns.map(str::to_ascii_uppercase)];
    rows.extend(states.iter().map(|state| {
        columns.map(|column| match &state[column] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        })
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
    fn a_table_has_a_line_for_each() {
        let state = serde_json::json!({
            "id": "web", "pid": 42, "status": "running", "bundle": "/b", "created": "now", "owner": "root",
        });
        let text = table(&[state]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[0],
            ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
        );
        assert_eq!(lines[1], ["web", "42", "running", "/b", "now", "root"]);
    }
}
