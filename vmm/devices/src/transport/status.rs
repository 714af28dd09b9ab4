//! The device status machine (virtio 1.2 §2.1, §3.1): which writes to the status register mean what. Pure.
//!
//! ```text
//!   0 ──► ACKNOWLEDGE ──► DRIVER ──► FEATURES_OK ──► DRIVER_OK
//!   ▲                                                   │
//!   └───────────── writing 0, from anywhere ────────────┘     FAILED may be set at any time
//! ```

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u8 = 1;
/// The guest knows how to drive it.
pub const DRIVER: u8 = 2;
/// The driver is ready.
pub const DRIVER_OK: u8 = 4;
/// Feature negotiation is complete.
pub const FEATURES_OK: u8 = 8;
/// The device can't go on until it is reset. Set by the device only.
pub const NEEDS_RESET: u8 = 0x40;
/// The driver gave up.
pub const FAILED: u8 = 0x80;

/// The steps in the order in which a driver sets them.
const STEPS: [u8; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// The bits that the driver has set, always a prefix of the steps above, with or without [`FAILED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status(u8);

/// What a write to the status register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Start over.
    Reset,
    /// Take on this status; nothing else happens.
    Set(Status),
    /// Take on this status if the features are acceptable (§3.1.1 step 5).
    CheckFeatures(Status),
    /// Take on this status and start serving (§3.1.1 step 8).
    Activate(Status),
    /// No correct driver writes this: ignore it.
    Refused,
}

impl Status {
    /// The bits as the register shows them, without [`NEEDS_RESET`].
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether the driver may still choose features.
    pub fn may_negotiate(self) -> bool {
        self.has(DRIVER) && !self.has(FEATURES_OK) && !self.has(FAILED)
    }

    /// Whether the driver may set up queues: between FEATURES_OK and DRIVER_OK (§3.1.1 step 7).
    pub fn may_set_up_queues(self) -> bool {
        self.has(FEATURES_OK) && !self.has(DRIVER_OK) && !self.has(FAILED)
    }

    /// Whether the device is live.
    pub fn is_live(self) -> bool {
        self.has(DRIVER_OK)
    }

    fn has(self, bit: u8) -> bool {
        self.0 & bit != 0
    }

    /// Decides what writing `value` to the register means. A driver may set several steps at once but skip
    /// none, may not clear a bit except by reset, and must read FEATURES_OK back before it sets DRIVER_OK.
    pub fn write(self, value: u32) -> Transition {
        let Ok(value) = u8::try_from(value) else {
            return Transition::Refused;
        };
        if value == 0 {
            return Transition::Reset;
        }
        // A driver that reads NEEDS_RESET, ORs a bit in and writes back is correct.
        let value = value & !NEEDS_RESET;
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        if value & !known != 0 || value & self.0 != self.0 || !is_prefix(value) {
            return Transition::Refused;
        }
        let next = Status(value);
        match value & !self.0 & (FEATURES_OK | DRIVER_OK) {
            0 => Transition::Set(next),
            _ if value & FAILED != 0 => Transition::Refused,
            FEATURES_OK => Transition::CheckFeatures(next),
            DRIVER_OK => Transition::Activate(next),
            _both => Transition::Refused,
        }
    }
}

fn is_prefix(value: u8) -> bool {
    STEPS
        .windows(2)
        .all(|pair| value & pair[1] == 0 || value & pair[0] != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn follow(writes: &[u32]) -> Status {
        writes
            .iter()
            .fold(Status::default(), |status, w| match status.write(*w) {
                Transition::Reset => Status::default(),
                Transition::Set(s) | Transition::CheckFeatures(s) | Transition::Activate(s) => s,
                Transition::Refused => status,
            })
    }

    #[test]
    fn the_sequence_of_the_specification_ends_live() {
        assert!(follow(&[0, 1, 3, 11, 15]).is_live());
    }

    #[test]
    fn driver_ok_without_features_ok_is_refused() {
        assert_eq!(follow(&[1, 3]).write(7), Transition::Refused);
    }

    #[test]
    fn features_ok_and_driver_ok_in_one_write_are_refused() {
        assert_eq!(follow(&[1, 3]).write(15), Transition::Refused);
    }

    #[test]
    fn clearing_one_bit_is_refused() {
        assert_eq!(follow(&[1, 3, 11, 15]).write(11), Transition::Refused);
    }

    #[test]
    fn a_driver_that_gave_up_can_not_go_live() {
        assert_eq!(follow(&[1, 3, 11, 0x8b]).write(0x8f), Transition::Refused);
    }

    #[test]
    fn the_needs_reset_bit_belongs_to_the_device() {
        assert_eq!(follow(&[1, 3]).write(0x4b), follow(&[1, 3]).write(0x0b));
    }

    proptest! {
        #[test]
        fn bits_are_a_prefix_of_the_steps_whatever_is_written(writes in prop::collection::vec(prop_oneof![0u32..256, any::<u32>()], 0..40)) {
            let status = follow(&writes);
            prop_assert!(is_prefix(status.bits()));
            prop_assert_eq!(status.bits() & NEEDS_RESET, 0);
        }

        #[test]
        fn writing_zero_resets_from_anywhere(writes in prop::collection::vec(0u32..256, 0..40)) {
            prop_assert_eq!(follow(&writes).write(0), Transition::Reset);
        }

        #[test]
        fn bits_are_never_lost_but_by_reset(writes in prop::collection::vec(0u32..256, 0..40), last in 1u32..256) {
            let before = follow(&writes);
            let mut all = writes;
            all.push(last);
            let after = follow(&all);
            prop_assert_eq!(before.bits() & after.bits(), before.bits());
        }
    }
}
