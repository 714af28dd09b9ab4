//! The NIC slots of a machine: empty at boot, filled and emptied by the owner.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vmbox_config::NicConfig;
use vmbox_devices::net::{Net, NicHandle, Occupied};

use super::assemble::AssembleError;
use crate::tap::Tap;

/// Why a slot could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// No such slot.
    #[error("this VM has {has} NIC slots, there is no slot {slot}")]
    NoSlot {
        /// Which.
        slot: u8,
        /// How many there are.
        has: usize,
    },
    /// No descriptor came with the request.
    #[error("no descriptor came with the request")]
    NoDescriptor,
    /// It is in use.
    #[error(transparent)]
    Occupied(#[from] Occupied),
    /// It was empty.
    #[error("there is nothing in slot {0}")]
    Empty(u8),
    /// Not a tap.
    #[error("the tap can't be used: {0}")]
    Tap(#[source] io::Error),
}

/// Slots by their number.
#[derive(Default)]
pub struct Nics(Vec<NicHandle>);

impl Nics {
    /// Makes the device of the next slot.
    pub(super) fn add(&mut self, config: &NicConfig) -> Result<Net, AssembleError> {
        let net = Net::new(config.mac.0, config.mtu)
            .map_err(|source| AssembleError::device(format!("NIC {}", self.0.len()), source))?;
        self.0.push(net.handle());
        Ok(net)
    }

    /// Puts a tap into a slot: the guest's link comes up.
    ///
    /// # Errors
    /// See [`NicError`].
    pub fn attach(&self, slot: u8, tap: Option<OwnedFd>) -> Result<(), NicError> {
        let nic = self.slot(slot)?;
        let tap = Tap::adopt(tap.ok_or(NicError::NoDescriptor)?).map_err(NicError::Tap)?;
        Ok(nic.attach(Arc::new(tap))?)
    }

    /// Empties a slot: the guest's link goes down, and the tap is closed.
    ///
    /// # Errors
    /// There is no such slot, or nothing in it.
    pub fn detach(&self, slot: u8) -> Result<(), NicError> {
        match self.slot(slot)?.detach() {
            true => Ok(()),
            false => Err(NicError::Empty(slot)),
        }
    }

    fn slot(&self, slot: u8) -> Result<&NicHandle, NicError> {
        self.0.get(usize::from(slot)).ok_or(NicError::NoSlot {
            slot,
            has: self.0.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_that_are_not_there_are_named() {
        let mut nics = Nics::default();
        let config = r#"{"mac":"02:00:00:00:00:01"}"#;
        nics.add(&serde_json::from_str(config).unwrap()).unwrap();
        let message = |error: NicError| error.to_string();
        assert_eq!(
            message(nics.attach(1, None).unwrap_err()),
            "this VM has 1 NIC slots, there is no slot 1"
        );
        assert_eq!(
            message(nics.detach(0).unwrap_err()),
            "there is nothing in slot 0"
        );
        assert!(matches!(nics.attach(0, None), Err(NicError::NoDescriptor)));
    }
}
