//! What is on the screen: the latest snapshot, its age, and what was chosen. Knows no terminal.

use std::collections::HashSet;
use std::time::Duration;

use pgleash_core::Moment;

use crate::admin_client::{Answer, HolderView, PERIOD, View};
use crate::top::decisions::{Decision, Decisions};

/// A key that does something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// One checkout up.
    Up,
    /// One checkout down.
    Down,
    /// A screenful up.
    PageUp,
    /// A screenful down.
    PageDown,
    /// Only the checkouts of the next pool; after the last, of all.
    NextPool,
    /// Only suspects, or all.
    Suspects,
    /// More room for what was decided, or less.
    Decisions,
    /// Begin to type words that a row must contain.
    Search,
    /// Part of these words.
    Typed(char),
    /// The last character of them goes.
    Erase,
    /// They are whole.
    Enter,
    /// They go; without any, the end.
    Escape,
    /// The end.
    Quit,
}

/// Whether it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Going {
    /// It does.
    On,
    /// The user has seen enough.
    Over,
}

/// The state of the screen.
#[derive(Debug)]
pub struct Screen {
    /// Where it comes from.
    pub source: String,
    /// The latest snapshot.
    pub view: View,
    /// When that was.
    seen: Option<Moment>,
    /// Why there is none since.
    pub failure: Option<String>,
    pub(super) pool: Option<String>,
    pub(super) decisions: Decisions,
    pub(super) decisions_wide: bool,
    pub(super) suspects_only: bool,
    pub(super) words: String,
    pub(super) typing: bool,
    /// The checkout under the bar.
    selected: Option<u64>,
}

impl Screen {
    /// Data that is older is not to be relied on.
    const STALE: Duration = Duration::from_secs(3);
    const PAGE: isize = 10;

    /// Nothing is known yet.
    pub fn new(source: String) -> Self {
        Self {
            source,
            view: View::default(),
            seen: None,
            failure: None,
            pool: None,
            decisions: Decisions::default(),
            decisions_wide: false,
            suspects_only: false,
            words: String::new(),
            typing: false,
            selected: None,
        }
    }

    /// Takes an answer in.
    pub fn take(&mut self, answer: Result<Answer, String>, now: Moment) {
        match answer {
            Ok(Answer { view, news, anew }) => {
                if anew {
                    self.decisions = Decisions::default();
                }
                news.iter().for_each(|event| self.decisions.hear(event));
                self.view = view;
                self.seen = Some(now);
                self.failure = None;
            }
            Err(why) => self.failure = Some(why),
        }
        if self.pool.as_ref().is_some_and(|pool| self.view.pools.iter().all(|known| known.pool != *pool)) {
            self.pool = None;
        }
    }

    /// How old the data is, if it is too old; `PERIOD` of it is normal.
    pub fn stale_for(&self, now: Moment) -> Option<Duration> {
        let age = now.since(self.seen?);
        (age >= Self::STALE).then_some(age.saturating_sub(PERIOD))
    }

    /// Whether there ever was data.
    pub fn has_data(&self) -> bool {
        self.seen.is_some()
    }

    /// The checkouts to show, with their pools, suspects and the longest idle first.
    pub fn rows(&self) -> Vec<(&str, &HolderView)> {
        let words: Vec<_> = self.words.split_whitespace().map(str::to_lowercase).collect();
        let pools =
            self.view.pools.iter().filter(|pool| self.pool.as_ref().is_none_or(|only| *only == pool.pool));
        let rows = pools.flat_map(|pool| pool.holders.iter().map(|holder| (pool.pool.as_str(), holder)));
        let mut rows: Vec<_> = rows
            .filter(|(_, holder)| !self.suspects_only || holder.suspect.is_some())
            .filter(|(pool, holder)| {
                let row = format!("{pool} {} {} {} {}", holder.app, holder.client, holder.phase, holder.why);
                let row = row.to_lowercase();
                words.iter().all(|word| row.contains(word))
            })
            .collect();
        rows.sort_by(|(_, a), (_, b)| {
            (b.suspect.is_some(), b.idle_seconds)
                .partial_cmp(&(a.suspect.is_some(), a.idle_seconds))
                .unwrap_or(std::cmp::Ordering::Equal)
                .then(a.id.cmp(&b.id))
        });
        rows
    }

    /// The checkouts that are out now, of any pool.
    pub fn out(&self) -> HashSet<u64> {
        self.view.pools.iter().flat_map(|pool| &pool.holders).map(|holder| holder.id).collect()
    }

    /// What was decided, newest first, of the pool and with the words that were chosen.
    pub fn decided(&self) -> impl Iterator<Item = &Decision> {
        let words: Vec<_> = self.words.split_whitespace().map(str::to_lowercase).collect();
        self.decisions.latest().filter(move |one| {
            let what = one.what.to_lowercase();
            let of_pool = self.pool.as_ref().is_none_or(|pool| one.what.contains(pool.as_str()));
            of_pool && words.iter().all(|word| what.contains(word))
        })
    }

    /// Which of the rows is under the bar.
    pub fn selected(&self, rows: &[(&str, &HolderView)]) -> Option<usize> {
        rows.iter().position(|(_, holder)| Some(holder.id) == self.selected)
    }

    /// A key was pressed.
    pub fn press(&mut self, key: Key) -> Going {
        match key {
            Key::Quit => return Going::Over,
            Key::Escape if self.typing || !self.words.is_empty() => {
                self.typing = false;
                self.words.clear();
            }
            Key::Escape => return Going::Over,
            Key::Typed(character) if self.typing => self.words.push(character),
            Key::Erase => drop(self.words.pop()),
            Key::Enter => self.typing = false,
            Key::Search => self.typing = true,
            Key::Decisions => self.decisions_wide = !self.decisions_wide,
            Key::Suspects => self.suspects_only = !self.suspects_only,
            Key::NextPool => self.pool = self.next_pool(),
            Key::Up => self.step(-1),
            Key::Down => self.step(1),
            Key::PageUp => self.step(-Self::PAGE),
            Key::PageDown => self.step(Self::PAGE),
            Key::Typed(_) => {}
        }
        Going::On
    }

    fn next_pool(&self) -> Option<String> {
        let mut names = self.view.pools.iter().map(|pool| &pool.pool);
        match &self.pool {
            None => names.next().cloned(),
            Some(current) => names.skip_while(|name| *name != current).nth(1).cloned(),
        }
    }

    fn step(&mut self, by: isize) {
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        let to = match self.selected(&rows) {
            None => 0,
            Some(at) => at.saturating_add_signed(by).min(last),
        };
        self.selected = rows.get(to).map(|(_, holder)| holder.id);
    }
}
