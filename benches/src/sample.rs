//! Series of measurements: what is timed, how often, and how it is told.

use std::fmt;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Measurements of each side, after one that does not count.
pub const ROUNDS: usize = 5;

/// CLOCK_MONOTONIC.
pub fn now() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// The measurements of one side.
pub struct Series {
    pub name: String,
    values: Vec<f64>,
}

impl Series {
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            values: Vec::new(),
        }
    }

    pub fn add(&mut self, elapsed: Duration) {
        self.values.push(elapsed.as_secs_f64() * 1e3);
    }

    /// In milliseconds; under `--icount`, millions of instructions.
    pub fn median(&self) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn spread(&self) -> (f64, f64) {
        let low = self.values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = self
            .values
            .iter()
            .copied()
            .fold(f64::NEG_INFINITY, f64::max);
        (low, high)
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.spread();
        write!(
            f,
            "{:<44} {:>9.1} ms or Minstr  [{low:.1} … {high:.1}]",
            self.name,
            self.median()
        )
    }
}

/// One side of a comparison: where its figures go, and how one is had.
pub type Side<'a> = (Series, Box<dyn FnMut() -> anyhow::Result<Duration> + 'a>);

/// Warms every side up once, then measures them in turns.
pub fn in_turns(mut sides: Vec<Side<'_>>) -> anyhow::Result<Vec<Series>> {
    for (_, measure) in &mut sides {
        measure()?;
    }
    for _ in 0..ROUNDS {
        for (series, measure) in &mut sides {
            series.add(measure()?);
        }
    }
    Ok(sides.into_iter().map(|(series, _)| series).collect())
}
