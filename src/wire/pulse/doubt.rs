//! Syncs of which nobody can say whether the server will answer them. Floor 1.
//!
//! In COPY-in the server ignores a Sync ("COPY Operations"). When the COPY fails, a Sync that is on its way
//! counts if the server reads it behind the error, and is ignored if it has read it before. Neither the
//! client nor we can see which; so the server is asked something whose answer is like no other.

/// What is uncertain on one server connection, and whether it is being cleared up.
#[derive(Debug, Clone, Default)]
pub struct Doubt {
    /// Syncs within the COPY that runs now.
    ignored: u32,
    /// Syncs of which some may be answered yet: their COPY has failed.
    maybe: u32,
    /// Close messages that the client has sent since nothing was owed: their answers are like ours.
    closes: u32,
    /// COPY data of this command have ended, and nothing was sent since.
    ended: Option<u64>,
    /// Behind the data of the COPY of this command, the last of its kind, more than a Sync was sent.
    burdened: u64,
    guess: Guess,
    question: Question,
}

/// What is done about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Question {
    #[default]
    No,
    /// Asked with so many Closes and a Sync; so many CloseCompletes have come in a row.
    Asked { closes: u32, seen: u32 },
    /// All of them: the next ReadyForQuery is the last of the answer.
    Answered,
}

/// Whether what the client sent has been taken for skipped by the server, which is not certain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Guess {
    #[default]
    No,
    /// Goes to `Wrong` if the server answers it.
    Skipped,
    /// Answers cannot be told apart any more.
    Wrong,
}

/// Whose answer a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The client's; so were so many CloseCompletes before it that were kept back.
    Client(u32),
    /// Ours: the client must not see it.
    Ours,
}

impl Doubt {
    /// More Closes than this in one question are not asked.
    const MOST: u32 = 1000;

    /// The client sent a Close.
    pub fn close_sent(&mut self) {
        self.closes = self.closes.saturating_add(1);
        if self.closes > Self::MOST && self.maybe > 0 {
            self.guess = Guess::Wrong;
        }
    }

    /// The client sent something that the server does not ignore in COPY. `skipping` if it is taken for
    /// skipped.
    pub fn sent(&mut self, skipping: bool) {
        if let Some(command) = self.ended.take() {
            self.burdened = command;
        }
        if skipping && self.maybe > 0 && self.guess == Guess::No {
            self.guess = Guess::Skipped;
        }
    }

    /// The client sent a Sync that counts.
    pub fn synced(&mut self) {
        self.ended = None;
    }

    /// The client ended the data of the COPY of this command, if it is one.
    pub fn ended(&mut self, command: u64) {
        self.ended = Some(command);
    }

    /// So many Syncs are ignored by the server, unless the COPY that runs has failed.
    pub fn ignored(&mut self, syncs: u32) {
        self.ignored = self.ignored.saturating_add(syncs);
    }

    /// The COPY is complete.
    pub fn copied(&mut self) {
        self.ignored = 0;
    }

    /// The COPY of this command has failed; if it was an Execute, the server skips what is behind it.
    pub fn copy_failed(&mut self, command: u64, executed: bool) {
        self.maybe = self.maybe.saturating_add(std::mem::take(&mut self.ignored));
        if self.maybe > 0 && ((executed && self.burdened >= command) || self.closes > Self::MOST) {
            self.guess = Guess::Wrong;
        }
    }

    /// A ReadyForQuery has come and no other was owed.
    pub fn unowed(&mut self) {
        self.maybe = self.maybe.saturating_sub(1);
        if self.guess == Guess::Skipped {
            self.guess = Guess::Wrong;
        }
    }

    /// Nothing is owed.
    pub fn rests(&mut self) {
        if self.maybe == 0 {
            self.closes = 0;
        }
    }

    /// Whether something is uncertain.
    pub fn is_there(&self) -> bool {
        self.maybe > 0 || self.question != Question::No
    }

    /// Whether the answers cannot be told apart any more.
    pub fn is_hopeless(&self) -> bool {
        self.guess == Guess::Wrong
    }

    /// Whether the server has been asked, and has not answered.
    pub fn is_asked(&self) -> bool {
        self.question != Question::No
    }

    /// Asks: how many Closes have to be sent, and a Sync behind them.
    pub fn ask(&mut self) -> u32 {
        let closes = self.closes.saturating_add(1);
        self.question = Question::Asked { closes, seen: 0 };
        closes
    }

    /// Whose this frame of the server's is.
    pub fn hears(&mut self, tag: u8) -> Whose {
        match (self.question, tag) {
            (Question::Asked { closes, seen }, b'3') if seen + 1 == closes => {
                (self.question, self.maybe) = (Question::Answered, 0);
                Whose::Ours
            }
            (Question::Asked { closes, seen }, b'3') => {
                self.question = Question::Asked { closes, seen: seen + 1 };
                Whose::Ours
            }
            (Question::Answered, b'Z') => {
                *self = Self::default();
                Whose::Ours
            }
            (Question::Asked { closes, seen }, _) if !matches!(tag, b'N' | b'S' | b'A') => {
                if self.guess == Guess::Skipped && tag != b'Z' {
                    self.guess = Guess::Wrong;
                }
                self.question = Question::Asked { closes, seen: 0 };
                Whose::Client(seen)
            }
            _ => Whose::Client(0),
        }
    }
}
