//! Searches in cookies, eight bytes at a time in a general register.
//!
//! A search with vector registers, as `memchr` does it, would leave parts of a token in them: the dynamic linker
//! saves those registers to the stack, where the parts would stay after the request.

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The position of the first byte that is one of `marks`.
#[inline]
pub(crate) fn find_any<const N: usize>(text: &[u8], marks: [u8; N]) -> Option<usize> {
    find(text, |word| any_of(word, marks), |b| marks.contains(&b))
}

/// The position of the first byte that ends a cookie's value or needs a closer look: `;`, `\`, and all but `&` to `~`. Of
/// those below `&`, `%` and `"` have a meaning; to ask for them singly would cost more.
#[inline]
pub(crate) fn find_unplain(text: &[u8]) -> Option<usize> {
    let marks = [b';', b'\\'];
    // Adding one sets the highest bit of a byte from 0x7f on; if it carries, that byte itself is found.
    let in_word =
        |word: u64| any_of(word, marks) | below(word, b'&') | word | word.wrapping_add(ONES);
    find(text, in_word, |b| !matches!(b, b'&'..=b'~') || marks.contains(&b))
}

/// `in_word` returns a word with the highest bit of each byte that is meant, and perhaps of bytes behind one.
#[inline]
fn find(text: &[u8], in_word: impl Fn(u64) -> u64, is_meant: impl Fn(u8) -> bool) -> Option<usize> {
    let (words, rest) = text.as_chunks::<8>();
    for (number, word) in words.iter().enumerate() {
        let found = in_word(u64::from_le_bytes(*word)) & (ONES << 7);
        if found != 0 {
            return Some(8 * number + found.trailing_zeros() as usize / 8);
        }
    }
    rest.iter().position(|b| is_meant(*b)).map(|at| text.len() - rest.len() + at)
}

#[inline]
fn any_of<const N: usize>(word: u64, marks: [u8; N]) -> u64 {
    marks.iter().fold(0, |found, mark| found | below(word ^ (ONES * u64::from(*mark)), 1))
}

/// The highest bit of each byte below `limit`, which is at most 128: a byte from there on borrows nothing from the
/// next one.
#[inline]
fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES * u64::from(limit)) & !word
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_found_at_each_place() {
        for len in 1..30 {
            for (at, byte) in (0..len).flat_map(|at| (0..=u8::MAX).map(move |byte| (at, byte))) {
                let mut text = vec![b'x'; len];
                text[at] = byte;
                // What follows does not count.
                text[len - 1] = if at < len - 1 { b';' } else { byte };
                let first = |is_meant: bool| match is_meant {
                    true => Some(at),
                    false => (text[len - 1] == b';').then_some(len - 1),
                };
                let is_mark = byte == b';' || byte == b'%';
                assert_eq!(find_any(&text, [b';', b'%']), first(is_mark), "{len} {at} {byte}");
                let is_unplain = !(b'&'..=b'~').contains(&byte) || matches!(byte, b';' | b'\\');
                assert_eq!(find_unplain(&text), first(is_unplain), "{len} {at} {byte}");
            }
        }
    }
}
