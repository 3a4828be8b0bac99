//! Values with a unit, as flags and configuration files say them: sizes and durations.

use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// Bytes, as a number or with K, M, G or T (powers of 1024).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl std::str::FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(format!("'{text}' is no size; expected a number and K, M, G or T")),
        };
        let number: u64 = digits.parse().map_err(|_| format!("'{text}' is no size; expected a number and K, M, G or T"))?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("'{text}' is too large"))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// A duration, as a number with d, h, m or s; 0 needs no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl std::str::FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no duration; expected a number and d, h, m or s");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let seconds = match &text[digits.len()..] {
            "d" => 24 * 3600,
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            "" if number == 0 => 1,
            _ => return Err(wrong()),
        };
        number.checked_mul(seconds).map(Duration::from_secs).map(Self).ok_or_else(|| format!("'{text}' is too long"))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        parsed(deserializer)
    }
}

/// A text, or a bare number, by the rules of the command line.
fn parsed<'de, D: Deserializer<'de>, T: std::str::FromStr<Err = String>>(deserializer: D) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(u64),
        Text(String),
    }
    let text = match Form::deserialize(deserializer)? {
        Form::Number(number) => number.to_string(),
        Form::Text(text) => text,
    };
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("7", 7), ("64K", 65536), ("100G", 100 << 30), ("1TiB", 1 << 40), ("2mb", 2 << 20)] {
            assert_eq!(text.parse::<ByteSize>().unwrap().0, bytes);
        }
        for bad in ["", "K", "1X", "-1", "1.5G", "99999999999T"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("7d", 604_800), ("12h", 43_200), ("30m", 1800), ("45s", 45), ("0", 0), ("0d", 0)] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_secs(), seconds);
        }
        for bad in ["", "d", "7", "-1s", "1.5h", "1w", "1ms", "99999999999999999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
