//! Words of a statement text, and the bytes between them.

/// Words are told apart by this many first bytes; longer ones are cut.
pub(super) const LONGEST: usize = 32;

/// What a byte is to the scanner.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Part of a word.
    Word,
    /// Ends a statement, or may begin or end a comment or a literal.
    Mark,
    /// Ends a word, and is nothing else.
    Gap,
}

/// What each byte is.
pub(super) const CLASSES: [Class; 256] = {
    let mut classes = [Class::Gap; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | 0x80.. => Class::Word,
            b';' | b'-' | b'/' | b'*' | b'\n' | b'\r' | b'\'' | b'"' | b'$' | b'\\' => Class::Mark,
            _ => Class::Gap,
        };
        byte += 1;
    }
    classes
};

/// Whether something comes to be by a statement with this word in it: also behind EXPLAIN ANALYZE, or with COMMIT PREPARED.
pub(super) fn makes(word: &[u8]) -> bool {
    matches!(word, b"create" | b"prepared")
}

/// Whether no text means anything else by the value of this parameter. Words are cut.
pub(super) fn is_beside_the_meaning(name: &[u8]) -> bool {
    matches!(
        name,
        b"application_name"
            | b"idle_in_transaction_session_time"
            | b"lock_timeout"
            | b"pgleash"
            | b"statement_timeout"
            | b"synchronous_commit"
            | b"transaction"
            | b"transaction_timeout"
    )
}
