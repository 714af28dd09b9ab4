//! The few devices that are not virtio, because the guest's kernel has nothing else for their purpose.

pub mod i8042;
pub mod rtc;
pub mod serial;
