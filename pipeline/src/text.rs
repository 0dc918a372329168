//! Helpers for text.

/// The largest index, at most `most`, at which `text` can be cut without splitting a character.
///
/// `str::floor_char_boundary` of the standard library needs Rust 1.91.
pub(crate) fn cut_before(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_character_is_split() {
        let text = "aé€😀";
        assert_eq!(text.len(), 10);
        let places: Vec<_> = (0..=11).map(|most| cut_before(text, most)).collect();
        assert_eq!(places, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10, 10]);
        assert_eq!(cut_before("", 5), 0);
    }
}
