//! Which statements are prepared on one server connection, and under which numbers.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::prepared::statement::{Scope, Statement};

/// A statement's number on one connection; the server knows it as `pgleash_<number>`.
pub(crate) type Number = u32;

/// The number that no statement ever has.
pub(crate) const NOBODY: Number = 0;

/// The statements on one server connection, those of longest disuse going first.
#[derive(Debug, Default)]
pub(crate) struct ServerCache {
    /// By the statement's address, which is kept from being used again by the statement being kept.
    slots: HashMap<usize, Slot, BuildHasherDefault<Address>>,
    last: Number,
    uses: u64,
    /// Statements that the server still has and nobody will use.
    discarded: Vec<Number>,
}

#[derive(Debug)]
struct Slot {
    statement: Arc<Statement>,
    number: Number,
    used: u64,
}

impl ServerCache {
    /// Statements that are kept prepared on one server connection.
    pub(crate) const CAPACITY: usize = 256;

    /// A number that was never used on this connection, or not for a very long time.
    pub(crate) fn new_number(&mut self) -> Number {
        self.last = self.last.checked_add(1).unwrap_or(NOBODY + 1);
        self.last
    }

    /// The number of this statement here.
    pub(crate) fn find(&mut self, statement: &Arc<Statement>) -> Option<Number> {
        let slot = self.slots.get_mut(&address(statement))?;
        self.uses += 1;
        slot.used = self.uses;
        Some(slot.number)
    }

    /// The statement has been prepared under this number. An older copy of it is discarded: what its names mean
    /// may have changed since. So is, where there is no room, the statement of longest disuse.
    pub(crate) fn put(&mut self, statement: Arc<Statement>, number: Number) {
        self.uses += 1;
        let slot = Slot { number, used: self.uses, statement };
        let key = address(&slot.statement);
        if let Some(older) = self.slots.insert(key, slot) {
            self.discarded.push(older.number);
        }
        if self.slots.len() > Self::CAPACITY
            && let Some(oldest) = self.slots.iter().min_by_key(|(_, slot)| slot.used).map(|(key, _)| *key)
        {
            self.discarded.extend(self.slots.remove(&oldest).map(|slot| slot.number));
        }
    }

    /// The server does not have it any more.
    pub(crate) fn lost(&mut self, number: Number) {
        self.slots.retain(|_, slot| slot.number != number);
    }

    /// The server has it, and it is of no use.
    pub(crate) fn discard(&mut self, number: Number) {
        self.lost(number);
        self.discarded.push(number);
    }

    /// Copies of one client's that were told by this number are of no use any more.
    pub(crate) fn discard_copies(&mut self, era: u64) {
        let Self { slots, discarded, .. } = self;
        slots.retain(|_, slot| {
            let stays = !matches!(slot.statement.scope, Scope::Client(number, _) if number == era);
            discarded.extend((!stays).then_some(slot.number));
            stays
        });
    }

    /// The server may have something by this number, which is of no use unless it is on the shelf.
    pub(crate) fn discard_stub(&mut self, number: Number) {
        if self.slots.values().all(|slot| slot.number != number) {
            self.discarded.push(number);
        }
    }

    /// Those to be closed at the server.
    pub(crate) fn take_discarded(&mut self) -> Vec<Number> {
        std::mem::take(&mut self.discarded)
    }

    /// Nothing is prepared any more.
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.discarded.clear();
    }
}

/// Addresses are unlike enough by themselves, and no client chooses them.
#[derive(Default)]
struct Address(u64);

impl Hasher for Address {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_usize(usize::from(*byte)));
    }

    fn write_usize(&mut self, address: usize) {
        // Fibonacci hashing: the multiplication carries the low bits, which vary, to the high ones.
        self.0 = (self.0 ^ address as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

fn address(statement: &Arc<Statement>) -> usize {
    Arc::as_ptr(statement) as usize
}

#[cfg(test)]
mod tests {
    use pgleash_core::Pins;

    use super::*;
    use crate::prepared::statement::Shape;

    fn statement(n: usize) -> Arc<Statement> {
        Arc::new(Statement {
            scope: Scope::Client(1, 0),
            text: n.to_string().into_bytes().into(),
            reading: None,
            types: [0, 0].into(),
            shape: Shape::of(b'n', b""),
            pins: Pins::default(),
        })
    }

    #[test]
    fn the_statement_of_longest_disuse_goes_first() {
        let mut server_cache = ServerCache::default();
        let all: Vec<_> = (0..=ServerCache::CAPACITY).map(statement).collect();
        for (n, statement) in all.iter().enumerate() {
            let number = server_cache.new_number();
            server_cache.put(Arc::clone(statement), number);
            if n == ServerCache::CAPACITY - 1 {
                assert!(server_cache.take_discarded().is_empty());
                assert_eq!(server_cache.find(&all[0]), Some(1), "used again");
            }
        }
        assert_eq!(server_cache.take_discarded(), [2]);
        assert_eq!((server_cache.find(&all[0]), server_cache.find(&all[1])), (Some(1), None));
        assert_eq!(server_cache.slots.len(), ServerCache::CAPACITY);
    }

    #[test]
    fn of_two_copies_the_newer_stays() {
        let mut server_cache = ServerCache::default();
        let one = statement(1);
        server_cache.put(Arc::clone(&one), 1);
        server_cache.put(Arc::clone(&one), 2);
        assert_eq!((server_cache.take_discarded(), server_cache.find(&one)), (vec![1], Some(2)));
        server_cache.lost(2);
        assert_eq!((server_cache.take_discarded(), server_cache.find(&one)), (vec![], None));
    }
}
