//! What the fuzzers of `fuzz/` look for, where there is no fuzzer: their corpus, and mutations of it.
#![allow(clippy::unwrap_used, reason = "a test that fails to unwrap has failed")]

use std::fs;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

#[allow(unreachable_pub, reason = "the fuzzers use it as a library")]
#[path = "../../../fuzz/src/properties.rs"]
mod properties;

/// Mutations of each piece of the corpus.
const MUTATIONS: u64 = 400;

#[test]
fn first_packets() {
    hold("first_packets", properties::first_packets);
}

#[test]
fn frames() {
    hold("frames", properties::frames);
}

#[test]
fn prepared() {
    hold("prepared", properties::prepared);
}

#[test]
fn statements() {
    hold("statements", properties::statements);
}

/// Every target that is there is tested here as well.
#[test]
fn no_target_is_forgotten() {
    let targets = names(Path::new("../../fuzz/fuzz_targets"));
    assert_eq!(targets, ["first_packets.rs", "frames.rs", "prepared.rs", "statements.rs"]);
    assert_eq!(names(Path::new("../../fuzz/corpus")), ["first_packets", "frames", "prepared", "statements"]);
}

/// The property holds for the corpus, and for what is like it.
fn hold(target: &str, property: fn(&[u8])) {
    let home = Path::new("../../fuzz/corpus").join(target);
    let corpus: Vec<Vec<u8>> = names(&home).iter().map(|name| fs::read(home.join(name)).unwrap()).collect();
    assert!(corpus.len() >= 5, "the corpus of {target} is lost");
    for (at, bytes) in corpus.iter().enumerate() {
        property(bytes);
        for seed in 0..MUTATIONS {
            let mut random = SmallRng::seed_from_u64(seed << 8 | at as u64);
            let mutant = mutate(bytes, &corpus, &mut random);
            let held = std::panic::catch_unwind(|| property(&mutant));
            assert!(held.is_ok(), "it does not hold for {:?}", mutant.escape_ascii().to_string());
        }
    }
}

/// A few changes of the kinds that find most: bytes at the edges of their range, and pieces that are
/// lost, doubled, or from elsewhere.
fn mutate(bytes: &[u8], corpus: &[Vec<u8>], random: &mut SmallRng) -> Vec<u8> {
    let mut mutant = bytes.to_vec();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=mutant.len());
        let end = (at + random.random_range(0..12)).min(mutant.len());
        let piece = mutant[at..end].to_vec();
        match random.random_range(0..6) {
            0 => drop(mutant.drain(at..end)),
            1 => drop(mutant.splice(at..at, piece)),
            2 => mutant.insert(at, random.random()),
            3 => {
                let other = &corpus[random.random_range(0..corpus.len())];
                mutant.splice(at.., other[random.random_range(0..=other.len())..].iter().copied());
            }
            _ if at < mutant.len() => {
                mutant[at] = [0, 1, 4, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..7)];
            }
            _ => {}
        }
    }
    mutant
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
