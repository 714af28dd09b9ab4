//! The debug serial console: output of a 16550A UART (vm-superio), eight byte-wide registers. No input.

use std::io::{self, Write};

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

/// Number of registers: ports on x86, bytes of MMIO elsewhere.
pub const REGISTERS: u64 = 8;

/// A UART whose output goes to a writer. Called by vCPU threads, one at a time; blocks if the writer does, so the writer shouldn't.
pub struct Serial {
    uart: vm_superio::Serial<Irq, vm_superio::serial::NoEvents, Box<dyn Write + Send>>,
}

struct Irq(EventFd);

impl Trigger for Irq {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

impl Serial {
    /// A UART that writes to `out` and raises `irq`.
    pub fn new(out: Box<dyn Write + Send>, irq: EventFd) -> Self {
        Self {
            uart: vm_superio::Serial::new(Irq(irq), out),
        }
    }

    /// A load at `offset` from the first register. Registers are a byte wide: other widths read as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(register), [byte]) = (register(offset), data) {
            *byte = self.uart.read(register);
        }
    }

    /// A store at `offset` from the first register. What can't be written out is lost, as on a loose cable.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(register), [byte]) = (register(offset), data)
            && let Err(e) = self.uart.write(register, *byte)
        {
            tracing::debug!(error = %e, "serial console");
        }
    }
}

fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset)
        .ok()
        .filter(|r| u64::from(*r) < REGISTERS)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn irq() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    #[test]
    fn bytes_come_out_in_order() {
        let output = Output::default();
        let mut serial = Serial::new(Box::new(output.clone()), irq());
        for byte in b"hello" {
            serial.write(DATA, &[*byte]);
        }
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        let mut status = [0];
        Serial::new(Box::new(io::sink()), irq()).read(LINE_STATUS, &mut status);
        assert_eq!(status[0] & 0x60, 0x60);
    }

    #[test]
    fn output_interrupts_once_the_driver_wants_it() {
        let irq = irq();
        let mut serial = Serial::new(Box::new(io::sink()), irq.try_clone().unwrap());
        serial.write(DATA, b"a");
        assert!(irq.read().is_err());
        serial.write(INTERRUPT_ENABLE, &[2]);
        serial.write(DATA, b"b");
        assert!(irq.read().unwrap() > 0);
    }

    #[test]
    fn a_broken_writer_is_survived() {
        let mut serial = Serial::new(Box::new(Broken), irq());
        serial.write(DATA, b"a");
        let mut status = [0];
        serial.read(LINE_STATUS, &mut status);
        assert_eq!(status[0] & 0x20, 0x20);
    }

    #[test]
    fn wide_and_far_accesses_are_ignored() {
        let output = Output::default();
        let mut serial = Serial::new(Box::new(output.clone()), irq());
        serial.write(DATA, b"ab");
        serial.write(8, b"a");
        serial.write(256, b"a");
        serial.write(u64::MAX, b"a");
        assert!(output.0.lock().unwrap().is_empty());
        let mut wide = [0xff; 4];
        serial.read(LINE_STATUS, &mut wide);
        assert_eq!(wide, [0; 4]);
    }
}
