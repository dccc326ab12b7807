//! A body in chunks (RFC 9112, 7.1).
//!
//! Extensions are skipped, and trailers are checked and dropped, both up to a bound.

use crate::wire::WireError;

/// The bytes of extensions that one body may have.
const LONGEST_EXTENSIONS: u32 = 16 << 10;
/// The bytes of trailers that one body may have.
const LONGEST_TRAILERS: usize = 16 << 10;
/// The trailers that one body may have.
const MOST_TRAILERS: usize = 100;

/// A trailer's line, or the last one, has a line feed without a carriage return.
pub(super) const BARE_TRAILER: &str = "a trailer has a line feed alone";

/// The digits of a size that is taken at once.
const SHORT_SIZE: usize = 8;

/// The place in a chunked body.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    expected: Expected,
    /// The bytes that are left of the present chunk.
    left: u64,
    extensions: u32,
    trailers: Option<Box<Trailers>>,
}

#[derive(Debug, Default)]
struct Trailers {
    bytes: Vec<u8>,
    count: usize,
}

/// The next byte's meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expected {
    /// The first digit of a size.
    #[default]
    Size,
    /// A digit, or what ends the size.
    Digit,
    /// Blanks behind a size.
    Blank,
    Extension,
    /// The line feed behind a size.
    SizeEnd,
    Data,
    /// The line end behind a chunk's data.
    DataCr,
    DataLf,
    /// A trailer, or the line end that is the body's end.
    TrailerOrEnd,
    Trailer,
    TrailerLf,
    EndLf,
    /// The body is complete.
    Nothing,
}

impl Chunks {
    /// Whether the end of the last chunk and of the trailers has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.expected == Expected::Nothing
    }

    /// Takes the next data from the beginning of `bytes`; `None` if they hold no more.
    ///
    /// # Errors
    /// The bytes are not chunks, or they have too many extensions or trailers.
    pub(crate) fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<&'a [u8]>, WireError> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.expected {
                Expected::Nothing => break,
                Expected::Data => {
                    let count = bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                    let (data, rest) = bytes.split_at(count);
                    *bytes = rest;
                    self.left -= count as u64;
                    if self.left == 0 {
                        self.expected = Expected::DataCr;
                        self.skip_data_end(bytes);
                    }
                    return Ok(Some(data));
                }
                expected => {
                    if expected == Expected::Size && self.skip_size(bytes) {
                        continue;
                    }
                    *bytes = rest;
                    self.expected = self.step(expected, byte).map_err(WireError::Chunks)?;
                }
            }
        }
        Ok(None)
    }

    /// Takes the line end behind a chunk's data, where it is whole.
    fn skip_data_end(&mut self, bytes: &mut &[u8]) {
        if let Some(rest) = bytes.strip_prefix(b"\r\n") {
            *bytes = rest;
            self.expected = Expected::Size;
        }
    }

    /// Takes the size of a chunk that has data, where it is whole, short and has no extension, as nearly
    /// always. Does what [`Chunks::step`] does byte by byte.
    fn skip_size(&mut self, bytes: &mut &[u8]) -> bool {
        let mut left = 0;
        for (at, byte) in bytes.iter().take(SHORT_SIZE + 1).enumerate() {
            match char::from(*byte).to_digit(16) {
                Some(digit) => left = left << 4 | u64::from(digit),
                None => {
                    let Some(rest) = bytes[at..].strip_prefix(b"\r\n") else { return false };
                    if left == 0 {
                        return false;
                    }
                    (self.left, self.expected, *bytes) = (left, Expected::Data, rest);
                    return true;
                }
            }
        }
        false
    }

    /// Takes one byte of the framing, and returns the meaning of the next one.
    fn step(&mut self, expected: Expected, byte: u8) -> Result<Expected, &'static str> {
        Ok(match (expected, byte) {
            (Expected::Size | Expected::Digit, byte) if byte.is_ascii_hexdigit() => {
                let digit = match byte {
                    b'0'..=b'9' => byte - b'0',
                    _ => (byte | 0x20) - b'a' + 10,
                };
                let left =
                    self.left.checked_mul(16).and_then(|left| left.checked_add(digit.into()));
                self.left = left.ok_or("a size is too large")?;
                Expected::Digit
            }
            (Expected::Digit | Expected::Blank, b' ' | b'\t') => Expected::Blank,
            (Expected::Digit | Expected::Blank, b';') => Expected::Extension,
            (Expected::Digit | Expected::Blank | Expected::Extension, b'\r') => Expected::SizeEnd,
            (Expected::Size | Expected::Digit | Expected::Blank, _) => {
                return Err("a size is not a number");
            }
            // Another reader could take it for the end of the line.
            (Expected::Extension, b'\n') => return Err("an extension has a line feed"),
            (Expected::Extension, _) => {
                self.extensions += 1;
                if self.extensions >= LONGEST_EXTENSIONS {
                    return Err("the extensions are too long");
                }
                Expected::Extension
            }
            (Expected::SizeEnd, b'\n') if self.left == 0 => Expected::TrailerOrEnd,
            (Expected::SizeEnd, b'\n') => Expected::Data,
            (Expected::DataCr, b'\r') => Expected::DataLf,
            (Expected::DataLf, b'\n') => Expected::Size,
            (Expected::DataCr | Expected::DataLf, _) => {
                return Err("a chunk is longer than its size");
            }
            // Another reader could take it for the end of the line, and of the body.
            (Expected::TrailerOrEnd | Expected::Trailer, b'\n') => {
                return Err(BARE_TRAILER);
            }
            (Expected::TrailerOrEnd, b'\r') => {
                self.trailer(byte, true)?;
                Expected::EndLf
            }
            (Expected::TrailerOrEnd | Expected::Trailer, byte) => {
                self.trailer(byte, false)?;
                if byte == b'\r' { Expected::TrailerLf } else { Expected::Trailer }
            }
            (Expected::TrailerLf, b'\n') => {
                self.trailer(byte, true)?;
                let trailers = self.trailers.get_or_insert_default();
                trailers.count += 1;
                if trailers.count > MOST_TRAILERS {
                    return Err("there are too many trailers");
                }
                Expected::TrailerOrEnd
            }
            (Expected::EndLf, b'\n') => {
                self.trailer(byte, true)?;
                self.check_trailers()?;
                Expected::Nothing
            }
            (Expected::SizeEnd | Expected::TrailerLf | Expected::EndLf, _) => {
                return Err("a line does not end in a line feed");
            }
            (Expected::Data | Expected::Nothing, _) => return Err("no framing is expected"),
        })
    }

    /// Keeps a byte of the trailers, to check them at their end. The line ends belong to them only
    /// if there are any.
    fn trailer(&mut self, byte: u8, is_line_end: bool) -> Result<(), &'static str> {
        if self.trailers.is_none() && is_line_end {
            return Ok(());
        }
        let trailers = self.trailers.get_or_insert_default();
        trailers.bytes.push(byte);
        if trailers.bytes.len() >= LONGEST_TRAILERS {
            return Err("the trailers are too long");
        }
        Ok(())
    }

    fn check_trailers(&mut self) -> Result<(), &'static str> {
        let Some(trailers) = self.trailers.take() else { return Ok(()) };
        let mut headers = vec![httparse::EMPTY_HEADER; trailers.count];
        match httparse::parse_headers(&trailers.bytes, &mut headers) {
            Ok(httparse::Status::Complete((length, _))) if length == trailers.bytes.len() => Ok(()),
            _ => Err("a trailer is not valid"),
        }
    }
}
