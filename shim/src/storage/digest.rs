//! SHA-256 digests of blobs, and a reader that computes one while bytes pass through.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest (OCI image-spec descriptor.md#digests). Being hexadecimal, it is safe as a file name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Digest([u8; 32]);

/// A digest that can't be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DigestError {
    #[error("digest {0:?} is not of the supported form sha256:<64 lower-case hexadecimal digits>")]
    Unsupported(String),
}

impl Digest {
    /// Digest of bytes that are in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// ChainID of this layer applied on `parent` (OCI image-spec config.md#layer-chainid).
    pub fn chained_on(&self, parent: &Digest) -> Digest {
        Digest::of(format!("{parent} {self}").as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let unsupported = || DigestError::Unsupported(text.chars().take(160).collect());
        let hex = text
            .strip_prefix("sha256:")
            .ok_or_else(unsupported)?
            .as_bytes();
        if hex.len() != 64 {
            return Err(unsupported());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.chunks_exact(2)) {
            match pair {
                [high, low] => {
                    let (high, low) = (nibble(*high), nibble(*low));
                    *byte = high
                        .zip(low)
                        .map(|(h, l)| h << 4 | l)
                        .ok_or_else(unsupported)?;
                }
                _ => return Err(unsupported()),
            }
        }
        Ok(Self(bytes))
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Passes bytes on and digests them.
pub struct HashingReader<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> HashingReader<R> {
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
        }
    }

    /// Reads what is left and returns the digest of everything.
    pub fn digest(&mut self) -> io::Result<Digest> {
        io::copy(self, &mut io::sink())?;
        Ok(Digest(self.hasher.clone().finalize().into()))
    }
}

impl<R: Read> Read for HashingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}
