//! One component of a path: 1 to 255 bytes, any byte but `/` and NUL, not `.` or `..`.
//!
//! Names are bytes, JSON strings are not. On the wire a name is its UTF-8 text with
//! `%` and every byte that is not part of valid UTF-8 (or is a control byte) written
//! as `%XX`, so that ordinary names stay readable in curl and logs.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind, Result};

/// The longest name, in bytes (NAME_MAX).
pub const NAME_MAX: usize = 255;

/// A checked name of a directory entry. A clone costs next to nothing: a client keeps each in several tables.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<[u8]>);

impl Name {
    /// Checks `bytes`: `NameTooLong` above [`NAME_MAX`], `Invalid` for everything else that no entry can be called.
    pub fn new(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Error::new(ErrorKind::NameTooLong, format!("a name has at most {NAME_MAX} bytes, this one {}", bytes.len())));
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." {
            return Err(Error::new(ErrorKind::Invalid, "a name is not empty, '.' or '..'"));
        }
        if bytes.iter().any(|&b| b == b'/' || b == 0) {
            return Err(Error::new(ErrorKind::Invalid, "a name holds no slash and no NUL"));
        }
        Ok(Self(bytes.into()))
    }

    /// The bytes as the user gave them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", encode(&self.0))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = decode(&text).ok_or_else(|| de::Error::custom("bad %XX escape"))?;
        Self::new(&bytes).map_err(|e| de::Error::custom(format!("{}: {}", e.kind().code(), e.message())))
    }
}

/// Any bytes (a symlink's target, an xattr's value) in the wire form of names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(pub Vec<u8>);

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        decode(&text).map(Text).ok_or_else(|| de::Error::custom("bad %XX escape"))
    }
}

/// The wire text of `bytes`.
pub fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '%' || c.is_control() {
                let mut buffer = [0; 4];
                c.encode_utf8(&mut buffer).bytes().for_each(|b| push_escape(&mut out, b));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|&b| push_escape(&mut out, b));
    }
    out
}

fn push_escape(out: &mut String, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.push('%');
    out.push(HEX[usize::from(byte >> 4)] as char);
    out.push(HEX[usize::from(byte & 15)] as char);
}

/// The bytes of wire text; `None` where a `%` is not followed by two hex digits.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push((high * 16 + low) as u8);
        } else {
            out.push(b);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_survive_the_wire(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            prop_assert_eq!(decode(&encode(&bytes)).unwrap(), bytes);
        }
    }

    #[test]
    fn ordinary_names_stay_readable() {
        assert_eq!(encode("grün 100%.txt".as_bytes()), "grün 100%25.txt");
        assert_eq!(encode(b"a\xffb\n"), "a%FFb%0A");
    }

    #[test]
    fn names_that_no_entry_can_have() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad).unwrap_err().kind(), ErrorKind::Invalid);
        }
        assert!(Name::new(&[b'x'; 255]).is_ok());
        assert_eq!(Name::new(&[b'x'; 256]).unwrap_err().kind(), ErrorKind::NameTooLong);
    }
}
