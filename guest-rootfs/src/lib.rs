//! Packs the agent into the guest image.
