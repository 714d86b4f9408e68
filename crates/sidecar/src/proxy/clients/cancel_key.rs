//! What a client cancels with.

use pgleash_wire::startup::LONG_KEYS_SINCE;
use subtle::ConstantTimeEq;

/// What a client must show to cancel what its session runs. It is ours: the server's own key stays here.
pub(crate) enum CancelKey {
    /// Up to protocol 3.1 the message has room for 32 bits.
    Short([u8; 4]),
    /// Since protocol 3.2.
    Long([u8; 32]),
}

impl CancelKey {
    /// A fresh key for a client that speaks this minor version of protocol 3, from the generator that
    /// `rand` keeps for secrets.
    pub(crate) fn new(minor: u16) -> Self {
        if minor >= LONG_KEYS_SINCE {
            CancelKey::Long(rand::random())
        } else {
            CancelKey::Short(rand::random())
        }
    }

    /// As the client is told it.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            CancelKey::Short(key) => key,
            CancelKey::Long(key) => key,
        }
    }

    /// Whether this is the key. Takes as long for a near miss as for a far one.
    pub(crate) fn is(&self, shown: &[u8]) -> bool {
        self.bytes().ct_eq(shown).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_long_where_the_protocol_has_room_and_never_alike() {
        assert_eq!([0, 1, 2].map(|minor| CancelKey::new(minor).bytes().len()), [4, 4, 32]);
        let (one, other) = (CancelKey::new(2), CancelKey::new(2));
        assert!(one.is(one.bytes()) && !one.is(other.bytes()));
        assert!(!one.is(&one.bytes()[..4]) && !one.is(&[]), "a part of it is not enough");
    }
}
