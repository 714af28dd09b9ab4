//! `cargo dev test --tier conformance`: what others wrote to judge OCI runtimes, judging ours beside runc and crun.
//!
//! ```text
//!   suites (built once) ──► units ──► each in the virtual host, with each runtime ──► records ──► scoreboard
//!                                                                                 conformance.md ──┘
//! ```

mod board;
mod reasons;
mod record;
mod runtime;
mod session;
mod suite;
mod tap;
mod wanted;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::arch::Arch;
use crate::debian;
use crate::product::{self, Profile};
use crate::workspace::{Workspace, say};

use board::Board;
use reasons::Reasons;
use record::Records;
use runtime::Runtime;
use session::Session;
use suite::{Suite, Unit};
use wanted::Wanted;

/// The list of what can't pass, and why.
const REASONS: &str = "tests/conformance.md";

/// Runs what `words` ask for and prints the scoreboard. Returns 1 if vmbox fails what runc passes for no reason given, or
/// if a file of tests ended before its last.
///
/// `VMBOX_TEST_BUILD=no` takes `.build/product` as it is.
pub fn run(workspace: &Workspace, archs: &[Arch], words: &[String]) -> Result<i32> {
    if archs != [Arch::X86_64] || !Arch::X86_64.is_native() {
        bail!("the suites' root file systems are for x86_64 alone");
    }
    let wanted = Wanted::read(words);
    let runtimes = wanted.runtimes();
    let suites = debian::oci_suites(workspace)?;
    let units = units(&suites, &wanted)?;
    let build = std::env::var("VMBOX_TEST_BUILD").as_deref() != Ok("no");
    if runtimes.contains(&Runtime::Vmbox) && build {
        product::build(workspace, Arch::native(), Profile::Release)?;
    }
    let records = Records::of(workspace);
    let mut session = Session::new(workspace, &suites, &runtimes)?;
    let mut board = Board::new(&runtimes);
    let mut unfinished = Vec::new();
    for unit in &units {
        for runtime in &runtimes {
            let stamp = session.stamp(*runtime);
            let known = records.load(*runtime, unit, &stamp);
            let record = match known.filter(|_| !wanted.names_units()) {
                Some(record) => record,
                None => {
                    let record = session.run(*runtime, unit)?;
                    if record.code != session::HOST_DIED {
                        records.save(*runtime, unit, &record)?;
                    }
                    record
                }
            };
            board.enter(*runtime, unit.verdicts(record.code, &record.output));
            let unreached = unit.unreached(&record.output);
            if unreached > 0 {
                unfinished.push(format!("{} {}: {unreached}", runtime.name(), unit.key()));
            }
        }
    }
    drop(session);
    let list = workspace.root.join(REASONS);
    let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    say(&format!(
        "what each printed is in {}",
        records.dir().display()
    ));
    print!("{}", board.render());
    for unit in &unfinished {
        println!("tests not reached: {unit}");
    }
    let code = conclude(&board, &Reasons::read(&list), wanted.is_all());
    Ok(code.max(i32::from(!unfinished.is_empty())))
}

fn units(suites: &Path, wanted: &Wanted) -> Result<Vec<Unit>> {
    let mut units = Vec::new();
    for suite in Suite::ALL {
        units.extend(suite.units(suites)?);
    }
    units.retain(|unit| wanted.has(unit));
    if units.is_empty() {
        bail!("no unit of the suites has such a name");
    }
    Ok(units)
}

/// Says what has no reason, and what reasons nothing needs; the exit status is for the first.
fn conclude(board: &Board, reasons: &Reasons, complete: bool) -> i32 {
    let unexplained = board.unexplained(reasons);
    for key in &unexplained {
        println!("no line in {REASONS}: {key}");
    }
    if complete {
        for key in board.idle(reasons) {
            println!("a line in {REASONS} that no failure needs: {key}");
        }
    }
    println!(
        "{} failures of vmbox that runc doesn't have lack a reason",
        unexplained.len()
    );
    i32::from(!unexplained.is_empty())
}
