//! I/O ports: the debug serial console if there is one, and the keyboard controller, whose only key is reset.

use std::sync::{Mutex, PoisonError};

use vmbox_devices::legacy::i8042::{self, COMMAND_PORT, DATA_PORT};
use vmbox_devices::legacy::serial::{REGISTERS, Serial};

use crate::machine::board::PortWrite;

const COM1: u16 = 0x3f8;
const COM1_LAST: u16 = COM1 + REGISTERS as u16 - 1;

/// Everything that answers at I/O ports.
pub struct Ports {
    serial: Option<Mutex<Serial>>,
}

impl Ports {
    /// The interrupt line of the serial console.
    pub const SERIAL_IRQ: u32 = 4;

    /// Ports with or without a serial console.
    pub fn new(serial: Option<Serial>) -> Self {
        Self {
            serial: serial.map(Mutex::new),
        }
    }

    /// An `in`; ports that nothing answers read as ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match (port, &self.serial) {
            (DATA_PORT..=COMMAND_PORT, _) => i8042::read(port, data),
            (COM1..=COM1_LAST, Some(serial)) => {
                lock(serial).read(u64::from(port - COM1), data);
            }
            _ => data.fill(0xff),
        }
    }

    /// An `out`; what no port answers is lost.
    pub fn write(&self, port: u16, data: &[u8]) -> PortWrite {
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
        let ports = Ports::new(None);
        assert_eq!(ports.write(0x64, &[0xfe]), PortWrite::Reset);
        assert_eq!(ports.write(0x60, &[0xfe]), PortWrite::Done);
    }

    #[test]
    fn absent_ports_read_as_ones() {
        let mut data = [0; 2];
        Ports::new(None).read(COM1, &mut data);
        assert_eq!(data, [0xff; 2]);
    }
}
