//! The real-time clock: an Arm PL031 (vm-superio; Arm DDI 0224), counting the host's seconds since 1970. A machine
//! without kvm-clock has no other way to know the date at boot. It has no alarm and no interrupt.

use vm_superio::rtc_pl031::NoEvents;

/// Bytes of its registers.
const REGION_BYTES: u64 = 0x1000;

/// A PL031. Called by vCPU threads, one at a time.
pub struct Rtc(vm_superio::Rtc<NoEvents>);

impl Default for Rtc {
    fn default() -> Self {
        Self(vm_superio::Rtc::new())
    }
}

impl Rtc {
    /// A load at `offset` from the first register. Registers are 32 bits wide: other widths read as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Some(register), Some(word)) = (register(offset), as_word(data)) {
            self.0.read(register, word);
        }
    }

    /// A store at `offset` from the first register.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Some(register), Ok(word)) = (register(offset), data.try_into()) {
            self.0.write(register, word);
        }
    }
}

fn as_word(data: &mut [u8]) -> Option<&mut [u8; 4]> {
    data.try_into().ok()
}

fn register(offset: u64) -> Option<u16> {
    let aligned = offset < REGION_BYTES && offset.is_multiple_of(4);
    u16::try_from(offset).ok().filter(|_| aligned)
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    const DATA: u64 = 0x0;
    const LOAD: u64 = 0x8;
    const PERIPHERAL_ID_0: u64 = 0xfe0;

    fn word(rtc: &mut Rtc, offset: u64) -> u32 {
        let mut data = [0; 4];
        rtc.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn it_tells_the_hosts_time() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let seconds = u64::from(word(&mut Rtc::default(), DATA));
        assert!((now.as_secs()..now.as_secs() + 60).contains(&seconds));
    }

    #[test]
    fn the_guest_may_set_it() {
        let mut rtc = Rtc::default();
        rtc.write(LOAD, &1000u32.to_le_bytes());
        assert!((1000..1060).contains(&word(&mut rtc, DATA)));
    }

    #[test]
    fn it_is_recognised_as_a_pl031() {
        let mut rtc = Rtc::default();
        assert_eq!(word(&mut rtc, PERIPHERAL_ID_0), 0x31);
        assert_eq!(word(&mut rtc, PERIPHERAL_ID_0 + 4), 0x10);
    }

    #[test]
    fn any_offset_width_and_value_is_survived() {
        let mut rtc = Rtc::default();
        for offset in (0..0x2000).chain([u64::MAX, 1 << 16, 1 << 32]) {
            for width in [1, 2, 4, 8] {
                let mut data = [0xff; 8];
                rtc.write(offset, &data[..width]);
                rtc.read(offset, &mut data[..width]);
                if width != 4 {
                    assert!(data[..width].iter().all(|byte| *byte == 0));
                }
            }
        }
    }
}
