//! The one thing that is left of the PC's keyboard controller: the reset line, by which Linux reboots (`reboot=k`).
//!
//! Intel 8042: command port 0x64, data port 0x60; command 0xfe pulses the CPU's reset line.

/// The first port of the controller's range, which ends with [`COMMAND_PORT`].
pub const DATA_PORT: u16 = 0x60;
/// The status (read) and command (write) port.
pub const COMMAND_PORT: u16 = 0x64;

const PULSE_RESET_LINE: u8 = 0xfe;

/// What a write to a port means for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Request {
    /// Nothing.
    None,
    /// The guest has ended and asks for a reset.
    Reset,
}

/// A read of any of the ports: status "buffers empty", data 0. Linux waits for the empty input buffer before
/// it sends the command.
pub fn read(_port: u16, data: &mut [u8]) {
    data.fill(0);
}

/// A write to one of the ports.
pub fn write(port: u16, data: &[u8]) -> Request {
    match (port, data) {
        (COMMAND_PORT, [PULSE_RESET_LINE]) => Request::Reset,
        _ => Request::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reset_command_asks_for_a_reset() {
        assert_eq!(write(COMMAND_PORT, &[0xfe]), Request::Reset);
    }

    #[test]
    fn other_commands_data_and_widths_are_ignored() {
        assert_eq!(write(COMMAND_PORT, &[0xd1]), Request::None);
        assert_eq!(write(DATA_PORT, &[0xfe]), Request::None);
        assert_eq!(write(COMMAND_PORT, &[0xfe, 0]), Request::None);
        assert_eq!(write(COMMAND_PORT, &[]), Request::None);
    }

    #[test]
    fn the_input_buffer_is_always_empty() {
        let mut status = [0xff];
        read(COMMAND_PORT, &mut status);
        assert_eq!(status, [0]);
    }
}
