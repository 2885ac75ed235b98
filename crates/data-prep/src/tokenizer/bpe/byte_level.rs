//! Characters that stand for bytes in a byte-level vocabulary.

/// Returns the byte that a character stands for. Printable Latin-1 characters stand for their own
/// byte. The other 68 bytes have the characters from U+0100, in order.
fn byte_from_char(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| printable(byte)),
        code => (0..=u8::MAX).filter(|&byte| !printable(byte)).nth(code as usize - 0x100),
    }
}

/// Returns the bytes that a token of the vocabulary stands for.
pub(super) fn token_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_from_char).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// len(set(bytes_to_unicode().values())) == 256 in GPT-2's encoder.py; spot values.
    #[test]
    fn characters_map_to_bytes() {
        let all: std::collections::BTreeSet<u8> =
            (0..0x144u32).filter_map(|c| byte_from_char(char::from_u32(c)?)).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(
            [' ', '\u{120}', '\u{10a}', 'a', '\u{144}'].map(byte_from_char),
            [None, Some(32), Some(10), Some(97), None]
        );
    }
}
