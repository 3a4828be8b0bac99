//! What is written and what must be read: pages of 4 KiB that follow from a seed and
//! their number, so that every byte can be checked without keeping it.
//!
//! No two seeds share a page: a file system that stores equal blocks once gains nothing.

use std::io;

/// The unit of content, in bytes.
pub(super) const PAGE: usize = 4096;

/// How many bytes are read and written at once.
pub(super) const PIECE: usize = 1 << 20;

const WORD: usize = 8;

fn word(seed: u64, number: u64) -> u64 {
    let mixed = seed.wrapping_add(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9)
}

/// Fills `out`, whole words, with what stands from page `first` of `seed` on.
pub(super) fn fill(seed: u64, first: u64, out: &mut [u8]) {
    let base = first * (PAGE / WORD) as u64;
    // Seeds are counted up: neighbours must not be each other's continuation.
    let seed = word(seed, 0);
    for (bytes, number) in out.chunks_exact_mut(WORD).zip(base..) {
        bytes.copy_from_slice(&word(seed, number).to_le_bytes());
    }
}

/// So many bytes from page `first` of `seed` on.
pub(super) fn bytes(seed: u64, first: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    fill(seed, first, &mut out);
    out
}

/// The error for bytes that are not those that were written, where `got` and `wanted` differ.
///
/// `offset` is where both stand in the file.
pub(super) fn compare(got: &[u8], wanted: &[u8], offset: u64) -> io::Result<()> {
    if got == wanted {
        return Ok(());
    }
    let at = got.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(got.len().min(wanted.len()));
    let (got, wanted) = (got.get(at), wanted.get(at));
    let shown = |byte: Option<&u8>| byte.map_or("the end".to_owned(), |byte| format!("{byte:#04x}"));
    Err(wrong(format!("byte {} is {}, and {} was written", offset + at as u64, shown(got), shown(wanted))))
}

/// The error for what was read and is not what was written.
pub(super) fn wrong(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("WRONG DATA: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_differ_from_one_another_and_from_seed_to_seed() {
        let pages: std::collections::HashSet<Vec<u8>> = (0..16).flat_map(|seed| (0..64).map(move |page| bytes(seed, page, PAGE))).collect();
        assert_eq!(pages.len(), 16 * 64);
    }

    #[test]
    fn a_page_is_the_same_however_it_is_asked_for() {
        let whole = bytes(7, 0, PIECE);
        assert_eq!(whole[5 * PAGE..6 * PAGE], bytes(7, 5, PAGE));
        assert_eq!(bytes(7, 5, 64), whole[5 * PAGE..][..64]);
    }

    #[test]
    fn one_changed_byte_is_found_wherever_it_is() {
        let wanted = bytes(1, 0, 2 * PAGE);
        assert!(compare(&wanted, &wanted, 0).is_ok());
        for at in [0, 1, PAGE - 1, PAGE, 2 * PAGE - 1] {
            let mut got = wanted.clone();
            got[at] ^= 0x10;
            let error = compare(&got, &wanted, 1000).unwrap_err();
            assert!(error.to_string().contains(&format!("WRONG DATA: byte {} is", 1000 + at)), "{error}");
        }
        assert!(compare(&wanted[1..], &wanted, 0).is_err() && compare(&wanted[..PAGE], &wanted, 0).unwrap_err().to_string().contains("the end"));
    }
}
