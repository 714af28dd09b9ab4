//! What a VmConfig may ask for: every limit, with its name and value, in one pure function.

use std::ops::RangeInclusive;

use vmbox_config::VmConfig;

use crate::arch;

const VCPUS: RangeInclusive<u8> = 1..=32;
const MEMORY_MIB: RangeInclusive<u32> = 32..=65536;
const EXTRA_MEMORY_MIB: RangeInclusive<u32> = 0..=65536;
const TAG_BYTES: RangeInclusive<usize> = 1..=36;
const SERIAL_BYTES: usize = 20;
/// What IPv4 wants at least (RFC 791), and what the field can say.
const MTU: RangeInclusive<u16> = 68..=u16::MAX;
const FIRST_GUEST_CID: u32 = 3;

/// The configuration can't be used: which field, what it says, what it may say.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("configuration: {0}")]
pub struct ConfigError(pub String);

/// Checks every limit.
///
/// # Errors
/// The first field that is beyond its limit.
pub fn validate(config: &VmConfig) -> Result<(), ConfigError> {
    within("vcpus", config.vcpus, &VCPUS)?;
    if let Some(online) = config.online_vcpus {
        within("online_vcpus", online, &(1..=config.vcpus))?;
    }
    within("memory_mib", config.memory_mib, &MEMORY_MIB)?;
    within(
        "extra_memory_mib",
        config.extra_memory_mib,
        &EXTRA_MEMORY_MIB,
    )?;
    for (index, share) in config.shares.iter().enumerate() {
        within(
            &format!("shares[{index}].tag's length"),
            share.tag.len(),
            &TAG_BYTES,
        )?;
        if !share.dax_window_mib.is_multiple_of(2) {
            return Err(ConfigError(format!(
                "shares[{index}].dax_window_mib is {}, it must be a multiple of 2",
                share.dax_window_mib
            )));
        }
        if config
            .shares
            .iter()
            .take(index)
            .any(|other| other.tag == share.tag)
        {
            return Err(ConfigError(format!(
                "two shares have the tag {:?}",
                share.tag
            )));
        }
    }
    for (index, disk) in config.disks.iter().enumerate() {
        within(
            &format!("disks[{index}].serial's length"),
            disk.serial.len(),
            &(0..=SERIAL_BYTES),
        )?;
    }
    for (index, nic) in config.nics.iter().enumerate() {
        if let Some(mtu) = nic.mtu {
            within(&format!("nics[{index}].mtu"), mtu, &MTU)?;
        }
    }
    if let Some(vsock) = &config.vsock {
        within(
            "vsock.guest_cid",
            vsock.guest_cid,
            &(FIRST_GUEST_CID..=u32::MAX - 1),
        )?;
    }
    if config
        .cmdline
        .bytes()
        .any(|byte| byte == 0 || byte == b'\n')
    {
        return Err(ConfigError(
            "cmdline contains a line break or zero byte".into(),
        ));
    }
    // Beside shares, disks and NICs: rng always, balloon, memory and vsock on demand.
    let devices = 1
        + config.shares.len()
        + config.disks.len()
        + config.nics.len()
        + usize::from(config.vsock.is_some())
        + usize::from(config.balloon)
        + usize::from(config.extra_memory_mib > 0);
    within("the number of devices", devices, &(1..=arch::MAX_DEVICES))
}

fn within<T: PartialOrd + std::fmt::Display>(
    what: &str,
    value: T,
    limits: &RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if limits.contains(&value) {
        return Ok(());
    }
    Err(ConfigError(format!(
        "{what} is {value}, it must be {} to {}",
        limits.start(),
        limits.end()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &str) -> VmConfig {
        let mut value: serde_json::Value =
            serde_json::from_str(r#"{"vcpus":1,"memory_mib":64,"kernel":"k"}"#).unwrap();
        let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
        value
            .as_object_mut()
            .unwrap()
            .extend(changes.as_object().unwrap().clone());
        serde_json::from_value(value).unwrap()
    }

    fn refusal(changes: &str) -> String {
        validate(&config(changes)).unwrap_err().0
    }

    #[test]
    fn limits_are_named() {
        assert_eq!(
            refusal(r#"{"memory_mib":1}"#),
            "memory_mib is 1, it must be 32 to 65536"
        );
        assert_eq!(
            refusal(r#"{"memory_mib":65537}"#),
            "memory_mib is 65537, it must be 32 to 65536"
        );
        assert_eq!(
            refusal(r#"{"vcpus":2,"online_vcpus":3}"#),
            "online_vcpus is 3, it must be 1 to 2"
        );
        assert_eq!(
            refusal(r#"{"extra_memory_mib":65537}"#),
            "extra_memory_mib is 65537, it must be 0 to 65536"
        );
        assert_eq!(refusal(r#"{"vcpus":0}"#), "vcpus is 0, it must be 1 to 32");
        assert_eq!(
            refusal(r#"{"vcpus":33}"#),
            "vcpus is 33, it must be 1 to 32"
        );
        assert!(
            refusal(r#"{"vsock":{"guest_cid":2,"socket":"s"}}"#)
                .starts_with("vsock.guest_cid is 2")
        );
        assert!(
            refusal(r#"{"shares":[{"tag":"","path":"/"}]}"#)
                .starts_with("shares[0].tag's length is 0")
        );
        assert!(
            refusal(r#"{"shares":[{"tag":"a","path":"/","dax_window_mib":3}]}"#)
                .contains("multiple of 2")
        );
    }

    #[test]
    fn a_nic_has_an_address_of_a_station_and_room_for_a_packet() {
        let nic = |rest: &str| format!(r#"{{"nics":[{{"mac":"02:00:00:00:00:01"{rest}}}]}}"#);
        assert_eq!(validate(&config(&nic(""))), Ok(()));
        assert_eq!(
            refusal(&nic(r#","mtu":67"#)),
            "nics[0].mtu is 67, it must be 68 to 65535"
        );
    }

    #[test]
    fn the_limits_themselves_are_allowed() {
        assert_eq!(
            validate(&config(r#"{"vcpus":32,"memory_mib":65536}"#)),
            Ok(())
        );
        assert_eq!(validate(&config(r#"{"vcpus":1,"memory_mib":32}"#)), Ok(()));
    }

    #[test]
    fn more_devices_than_interrupt_pins_are_refused() {
        let disks = vec![r#"{"path":"d"}"#; arch::MAX_DEVICES].join(",");
        assert!(
            refusal(&format!(r#"{{"disks":[{disks}]}}"#)).contains("the number of devices is 20")
        );
    }
}
