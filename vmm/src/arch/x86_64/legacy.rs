//! The devices that are not virtio, all at I/O ports: the debug serial console if there is one, and the keyboard controller, whose only key is reset.

use std::sync::{Mutex, PoisonError};

use vmbox_devices::legacy::i8042::{self, COMMAND_PORT, DATA_PORT};
use vmbox_devices::legacy::serial::{REGISTERS, Serial};

use crate::machine::board::PortWrite;

const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = COM1 + REGISTERS as u16 - 1;

/// The interrupt line of the serial console.
pub const SERIAL_IRQ: u32 = 4;

/// Everything that answers at I/O ports.
pub struct Legacy {
    serial: Option<Mutex<Serial>>,
}

impl Legacy {
    /// Devices with or without a serial console.
    pub fn new(serial: Option<Serial>) -> Self {
        Self {
            serial: serial.map(Mutex::new),
        }
    }

    /// A load from an address at which no virtio device answers: ones, as on a real bus.
    pub fn read(&self, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// A store there: lost.
    pub fn write(&self, _address: u64, _data: &[u8]) {}

    /// An `in`; ports that nothing answers read as ones.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        match (port, &self.serial) {
            (DATA_PORT..=COMMAND_PORT, _) => i8042::read(port, data),
            (COM1..=COM1_LAST, Some(serial)) => {
                lock(serial).read(u64::from(port - COM1), data);
            }
            _ => data.fill(0xff),
        }
    }

    /// An `out`; what no port answers is lost.
    pub fn write_port(&self, port: u16, data: &[u8]) -> PortWrite {
        match (port, &self.serial) {
            (DATA_PORT..=COMMAND_PORT, _) => match i8042::write(port, data) {
                i8042::Request::None => PortWrite::Done,
                i8042::Request::Reset => PortWrite::Reset,
            },
            (COM1..=COM1_LAST, Some(serial)) => {
                lock(serial).write(u64::from(port - COM1), data);
                PortWrite::Done
            }
            _ => PortWrite::Done,
        }
    }
}

fn lock(serial: &Mutex<Serial>) -> std::sync::MutexGuard<'_, Serial> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyboard_controller_resets() {
        let ports = Legacy::new(None);
        assert_eq!(ports.write_port(0x64, &[0xfe]), PortWrite::Reset);
        assert_eq!(ports.write_port(0x60, &[0xfe]), PortWrite::Done);
    }

    #[test]
    fn absent_ports_read_as_ones() {
        let mut data = [0; 2];
        Legacy::new(None).read_port(COM1, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
