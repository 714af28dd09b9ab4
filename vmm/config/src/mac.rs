//! A MAC address, written as people do: `02:00:00:00:00:01`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A MAC address of one station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// This is no MAC address of one station.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the MAC address of a station, such as 02:00:00:00:00:01")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let is_byte = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
        let byte = |part: &str| {
            let digits = Some(part).filter(|part| is_byte(part))?;
            u8::from_str_radix(digits, 16).ok()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        bytes
            .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
            // The lowest bit of the first byte says that it is a group's.
            .filter(|bytes| bytes[0] & 1 == 0 && *bytes != [0; 6])
            .map(Self)
            .ok_or_else(|| BadMac(text.to_owned()))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for Mac {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let mac: Mac = "02:0a:FF:00:00:01".parse().unwrap();
        assert_eq!(mac.0, [2, 10, 255, 0, 0, 1]);
        assert_eq!(mac.to_string(), "02:0a:ff:00:00:01");
    }

    #[test]
    fn what_no_station_has_is_refused() {
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:1",
            "+2:00:00:00:00:01",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(BadMac(bad.to_owned())));
        }
    }
}
