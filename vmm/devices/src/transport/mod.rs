//! How a driver finds, configures and resets a device. MMIO is the only transport; PCI would be a sibling.

mod mmio;
mod signal;
pub mod status;

pub use mmio::{MMIO_REGION_SIZE, MmioTransport, QUEUE_NOTIFY};
