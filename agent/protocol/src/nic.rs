//! The MAC addresses of NIC slots, by which host and guest tell the NICs of a pod apart.

/// What the addresses of slots begin with: an address of local administration, and a name.
pub const SLOT_MAC_PREFIX: [u8; 5] = [0x02, b'v', b'm', b'b', b'x'];

/// The address with which the NIC of a slot comes. The guest then gives it the one that the host's interface has.
pub const fn slot_mac(slot: u8) -> [u8; 6] {
    let [a, b, c, d, e] = SLOT_MAC_PREFIX;
    [a, b, c, d, e, slot]
}
