//! Text from elsewhere, for a person to read. Floor 0.

/// Whether a character would act on a terminal, or turn the direction of a line.
pub fn acts(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
