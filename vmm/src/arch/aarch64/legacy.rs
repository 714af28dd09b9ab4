//! The devices that are not virtio: the real-time clock, and the debug serial console if there is one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmbox_devices::legacy::rtc::Rtc;
use vmbox_devices::legacy::serial::Serial;

use super::layout::{LEGACY_BYTES, RTC, SERIAL};
use crate::machine::board::PortWrite;

/// Everything beside the virtio devices.
pub struct Legacy {
    rtc: Mutex<Rtc>,
    serial: Option<Mutex<Serial>>,
}

impl Legacy {
    /// Devices with or without a serial console.
    pub fn new(serial: Option<Serial>) -> Self {
        Self {
            rtc: Mutex::default(),
            serial: serial.map(Mutex::new),
        }
    }

    /// A load; what no device answers reads as ones, as on a real bus.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match (address / LEGACY_BYTES * LEGACY_BYTES, &self.serial) {
            (RTC, _) => lock(&self.rtc).read(address - RTC, data),
            (SERIAL, Some(serial)) => lock(serial).read(address - SERIAL, data),
            _ => data.fill(0xff),
        }
    }

    /// A store; what no device answers is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        match (address / LEGACY_BYTES * LEGACY_BYTES, &self.serial) {
            (RTC, _) => lock(&self.rtc).write(address - RTC, data),
            (SERIAL, Some(serial)) => lock(serial).write(address - SERIAL, data),
            _ => {}
        }
    }

    /// There are no I/O ports; KVM never says so here.
    pub fn read_port(&self, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// As above.
    pub fn write_port(&self, _port: u16, _data: &[u8]) -> PortWrite {
        PortWrite::Done
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_answers_and_an_absent_console_does_not() {
        let legacy = Legacy::new(None);
        let mut data = [0; 4];
        legacy.read(RTC, &mut data);
        assert!(u32::from_le_bytes(data) > 1_700_000_000);
        for address in [SERIAL, RTC + LEGACY_BYTES, u64::MAX - 3] {
            legacy.write(address, &data);
            legacy.read(address, &mut data);
            assert_eq!(data, [0xff; 4]);
        }
    }
}
