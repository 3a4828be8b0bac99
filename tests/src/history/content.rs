//! The bytes of what clients write: each piece says who wrote it and how long it is, and
//! every byte of it follows from that, so that a reader can tell a whole file from a
//! torn one without knowing what was written.

use super::record::{Content, Piece};

const MAGIC: [u8; 4] = *b"dfs>";
/// Magic, client, sequence, length.
const HEAD: usize = 16;
/// Longest piece: several blocks, so that a torn file shows.
const LONGEST: u64 = 600_000;

fn mix(n: u64) -> u64 {
    let z = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn seed(piece: Piece) -> u64 {
    mix((u64::from(piece.client) << 32 | u64::from(piece.sequence)).wrapping_add(0x9E37_79B9_7F4A_7C15))
}

/// The length of a piece; of an appended one at most some kilobytes, so that files do not grow for ever.
pub fn length(piece: Piece, append: bool) -> u64 {
    let n = seed(piece);
    let limit = match n % 8 {
        _ if append => 4_000,
        0..=3 => 200,
        4 | 5 => 9_000,
        6 => 300_000,
        _ => LONGEST,
    };
    HEAD as u64 + (n >> 8) % limit
}

/// The bytes of `piece`.
pub fn bytes(piece: Piece, length: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(length as usize + 8);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&u32::from(piece.client).to_le_bytes());
    out.extend_from_slice(&piece.sequence.to_le_bytes());
    out.extend_from_slice(&(length as u32).to_le_bytes());
    let mut word = seed(piece);
    while out.len() < length as usize {
        out.extend_from_slice(&word.to_le_bytes());
        word = word.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
    }
    out.truncate(length as usize);
    out
}

/// What a file holds, or what is wrong with it.
pub fn parse(file: &[u8]) -> Result<Content, String> {
    let (mut pieces, mut at) = (Vec::new(), 0);
    while at < file.len() {
        let torn = |why: &str| format!("torn: {} bytes, of which {at} are whole ({pieces:?}); then {why}", file.len());
        let rest = &file[at..];
        if rest.len() < HEAD || rest[..4] != MAGIC {
            let zeros = if rest.iter().all(|&b| b == 0) { ", all zeros" } else { "" };
            return Err(torn(&format!("no piece begins, but {:?}{zeros}", String::from_utf8_lossy(&rest[..rest.len().min(HEAD)]))));
        }
        let word = |from: usize| u32::from_le_bytes(rest[from..from + 4].try_into().expect("four bytes"));
        let piece = Piece { client: word(4) as u8, sequence: word(8) };
        let length = word(12) as usize;
        if length < HEAD || length > rest.len() {
            return Err(torn(&format!("{piece:?} of {length} bytes ends early")));
        }
        let wanted = bytes(piece, length as u64);
        if rest[..length] != wanted[..] {
            let wrong = rest.iter().zip(&wanted).position(|(a, b)| a != b).unwrap_or(length);
            return Err(torn(&format!("{piece:?} of {length} bytes has others from its byte {wrong} on")));
        }
        pieces.push(piece);
        at += length;
    }
    Ok(Content { pieces: pieces.into(), bytes: file.len() as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_what_is_read() {
        let pieces: Vec<Piece> = (0..40).map(|sequence| Piece { client: (sequence % 4) as u8, sequence }).collect();
        let file: Vec<u8> = pieces.iter().flat_map(|&p| bytes(p, length(p, false))).collect();
        let content = parse(&file).unwrap();
        assert_eq!(*content.pieces, pieces[..]);
        assert_eq!(content.bytes, file.len() as u64);
        assert_eq!(parse(&[]).unwrap(), Content::default());
        assert!(pieces.iter().any(|&p| length(p, false) > 300_000) && pieces.iter().any(|&p| length(p, false) < 200));
    }

    #[test]
    fn torn_files_are_found() {
        let (a, b) = (Piece { client: 1, sequence: 7 }, Piece { client: 2, sequence: 9 });
        let (one, two) = (bytes(a, 5_000), bytes(b, 5_000));
        let mut mixed = one.clone();
        mixed[4_096..].copy_from_slice(&two[4_096..]);
        let mut zeros = one.clone();
        zeros[1_000..2_000].fill(0);
        for bad in [&one[..4_999], &mixed, &zeros, &[0; 5_000], &one[1..]] {
            assert!(parse(bad).unwrap_err().starts_with("torn"));
        }
    }
}
