//! Which compression a blob has, told from its first bytes and never from its name or media type.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// Largest zstd window accepted, as a power of two: 128 MiB, the default limit of the zstd tool too.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// A plain stream out of a compressed or plain one.
pub enum Decoder<R: BufRead> {
    Plain(R),
    Gzip(MultiGzDecoder<R>),
    Zstd(zstd::stream::read::Decoder<'static, R>),
}

/// Tells the compression by the magic number.
///
/// # Errors
/// `Unsupported` for bzip2 and xz, which OCI doesn't have, naming the format and the way out.
pub fn detect(start: &[u8]) -> io::Result<Compression> {
    let refused = |name| {
        let text = format!("compressed with {name}, which images don't use: decompress it first");
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    };
    match start {
        [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Compression::Zstd),
        // A skippable frame may come first (zstd:chunked, seekable zstd; RFC 8878 §3.1.2).
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => refused("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => refused("bzip2"),
        _ => Ok(Compression::Plain),
    }
}

impl<R: BufRead> Decoder<R> {
    /// Looks at the first bytes of `input` and decodes accordingly.
    pub fn new(mut input: R) -> io::Result<Self> {
        match detect(input.fill_buf()?)? {
            Compression::Plain => Ok(Self::Plain(input)),
            Compression::Gzip => Ok(Self::Gzip(MultiGzDecoder::new(input))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Ok(Self::Zstd(decoder))
            }
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}
