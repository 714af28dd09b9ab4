//! Series of measurements: how often something is measured, and how it is told.

use std::fmt;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Measurements of each side, after one that does not count.
pub const ROUNDS: usize = 5;

/// CLOCK_MONOTONIC.
pub fn now() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// What was measured of one side.
pub struct Series {
    name: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Series {
    /// In milliseconds; under `--icount`, millions of instructions.
    pub fn times(name: &str, values: impl IntoIterator<Item = Duration>) -> Self {
        let values = values.into_iter().map(|time| time.as_secs_f64() * 1e3);
        Self::new(name, "ms or Minstr", values.collect())
    }

    /// How often something happened.
    pub fn counts(name: &str, values: impl IntoIterator<Item = u32>) -> Self {
        Self::new(name, "times", values.into_iter().map(f64::from).collect())
    }

    fn new(name: &str, unit: &'static str, values: Vec<f64>) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            values,
        }
    }

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
            "{:<44} {:>9.1} {:<12}  [{low:.1} … {high:.1}]",
            self.name,
            self.median(),
            self.unit
        )
    }
}

/// How one side is measured.
pub type Side<'a, T> = Box<dyn FnMut() -> anyhow::Result<T> + 'a>;

/// Warms every side up once, then measures them in turns. What is returned is in the order of the sides.
pub fn in_turns<T>(mut sides: Vec<Side<'_, T>>) -> anyhow::Result<Vec<Vec<T>>> {
    for measure in &mut sides {
        measure()?;
    }
    let mut measured: Vec<Vec<T>> = sides.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (measure, values) in sides.iter_mut().zip(&mut measured) {
            values.push(measure()?);
        }
    }
    Ok(measured)
}

/// One line for each side, and how many times the first one's figure it is.
pub fn tell(what: &str, names: &[&str], times: Vec<Vec<Duration>>) {
    let mut first = None;
    for (name, times) in names.iter().zip(times) {
        let series = Series::times(&format!("{name} {what}"), times);
        let median = series.median();
        let ratio = median / *first.get_or_insert(median);
        println!("{series}  ({ratio:.2} x {})", names[0]);
    }
}
