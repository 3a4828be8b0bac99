//! Memory of answers that were sent, for the next ones: what is used again need not be
//! mapped and cleared by the kernel, which takes as long as a fifth of a large read.

use parking_lot::Mutex;

/// So many are kept …
const KEPT: usize = 4;
/// … of up to so many bytes each: what mounts read at a time.
const MAX: usize = 1 << 20;

/// What is not in use.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// `len` bytes of anything.
    pub(super) fn take(&self, len: usize) -> Vec<u8> {
        if len > MAX {
            return vec![0; len];
        }
        let mut buffer = self.0.lock().pop().unwrap_or_default();
        // No more than that, or it may grow too large to be kept.
        buffer.reserve_exact(len.saturating_sub(buffer.len()));
        buffer.resize(len, 0);
        buffer
    }

    /// Keeps `buffer`, if that is worth it.
    pub(super) fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock();
        if buffer.capacity() <= MAX && kept.len() < KEPT {
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_is_used_again() {
        let buffers = Buffers::default();
        let mut first = buffers.take(1000);
        let at = first.as_ptr();
        first.fill(7);
        buffers.give(first);
        let again = buffers.take(500);
        assert_eq!((again.as_ptr(), again.len()), (at, 500));
        buffers.give(vec![1; MAX * 2 / 3]);
        let longer = buffers.take(MAX);
        assert_eq!((longer.len(), longer.capacity()), (MAX, MAX));
        buffers.give(vec![1; MAX + 1]);
        assert_eq!(buffers.take(MAX + 1).len(), MAX + 1);
        (0..=KEPT).for_each(|_| buffers.give(vec![1; 10]));
        assert_eq!(buffers.0.lock().len(), KEPT);
    }
}
