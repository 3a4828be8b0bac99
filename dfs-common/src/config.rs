//! Configuration files: TOML whose keys are the flags' names with `_`; unknown keys are
//! errors that name the nearest known one.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, ErrorKind, Result};

/// Reads `path` into `T`. `known` lists the keys of `T`, for the message about an unknown one.
pub fn read<T: DeserializeOwned>(path: &Path, known: &[&str]) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::new(ErrorKind::Invalid, format!("configuration {}: {e}", path.display())))?;
    parse(&text, known).map_err(|e| e.context(format!("configuration {}", path.display())))
}

/// The same for a text.
pub fn parse<T: DeserializeOwned>(text: &str, known: &[&str]) -> Result<T> {
    let invalid = |message: String| Error::new(ErrorKind::Invalid, message);
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| invalid(e.to_string().trim().to_owned()))?;
    if let Some(key) = table.keys().find(|key| !known.contains(&key.as_str())) {
        return Err(invalid(unknown("key", key, known)));
    }
    table.try_into().map_err(|e: toml::de::Error| invalid(e.to_string().trim().to_owned()))
}

/// "unknown option 'x'; did you mean 'y'?"
pub fn unknown(what: &str, given: &str, known: &[&str]) -> String {
    match nearest(given, known) {
        Some(near) => format!("unknown {what} '{given}'; did you mean '{near}'?"),
        None => format!("unknown {what} '{given}'; known are: {}", known.join(", ")),
    }
}

/// The known word that looks most like `given`, if any looks like it at all.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let best = known.iter().map(|k| (strsim::jaro_winkler(given, k), *k)).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 > 0.75).then_some(best.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Sample {
        port: u16,
    }

    #[test]
    fn an_unknown_key_names_its_neighbour() {
        assert_eq!(parse::<Sample>("port = 1", &["port"]).unwrap().port, 1);
        let error = parse::<Sample>("prot = 1", &["port", "host"]).unwrap_err();
        assert_eq!(error.message(), "unknown key 'prot'; did you mean 'port'?");
        let error = parse::<Sample>("zzz = 1", &["port", "host"]).unwrap_err();
        assert_eq!(error.message(), "unknown key 'zzz'; known are: port, host");
        assert!(parse::<Sample>("port = \"x\"", &["port"]).is_err());
        assert!(parse::<Sample>("port =", &["port"]).is_err());
    }
}
