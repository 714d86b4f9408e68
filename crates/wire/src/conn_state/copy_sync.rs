//! Syncs of which nobody can say whether the server will answer them.
//!
//! In COPY-in the server ignores a Sync ("COPY Operations"). When the COPY fails, a Sync that is on its way
//! counts if the server reads it behind the error, and is ignored if it has read it before. Neither the
//! client nor we can see which; so the server is asked something whose answer is like no other.

/// What is uncertain on one server connection, and whether it is being cleared up.
#[derive(Debug, Clone, Default)]
pub(crate) struct CopySync {
    /// Syncs within the COPY that runs now.
    ignored: u32,
    /// Syncs of which some may be answered yet: their COPY has failed.
    maybe: u32,
    /// Close messages that the client has sent since nothing was owed: their answers are like ours.
    closes: u32,
    /// COPY data of this command have ended, and nothing was sent since.
    ended: Option<u64>,
    /// The last command of which that was so.
    last_ended: u64,
    /// Behind the data of the COPYs of these commands more than a Sync was sent.
    burdened: Vec<u64>,
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

/// Whether what the client sent has been taken for skipped or refused by the server, which is not certain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Guess {
    #[default]
    No,
    /// Something was sent that the server does not take in COPY. Goes to `No` or `Refused`.
    Strayed,
    /// The COPY has failed, which ends the connection if it was for that. Goes to `Wrong` if it does not.
    Refused,
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

impl CopySync {
    /// More Closes than this in one question are not asked.
    const MOST: u32 = 1000;
    /// With so many burdened commands those that are over are forgotten.
    const ENOUGH: usize = 64;

    /// The client sent a Close.
    pub(crate) fn close_sent(&mut self) {
        self.closes = self.closes.saturating_add(1);
        if self.closes > Self::MOST && self.maybe > 0 {
            self.guess = Guess::Wrong;
        }
    }

    /// The client sent something that the server does not ignore in COPY. `skipping` if it is taken for
    /// skipped. This many commands are over.
    pub(crate) fn sent(&mut self, skipping: bool, done: u64) {
        if let Some(command) = self.ended.take() {
            if self.burdened.len() >= Self::ENOUGH {
                self.burdened.retain(|burdened| *burdened > done);
            }
            self.burdened(command);
        }
        if skipping && self.maybe > 0 && self.guess != Guess::Wrong {
            self.guess = Guess::Skipped;
        }
    }

    /// The client sent a Sync that counts.
    pub(crate) fn synced(&mut self) {
        self.ended = None;
    }

    /// The client ended the data of the COPY of this command, if it is one.
    pub(crate) fn ended(&mut self, command: u64) {
        // Another end for the same one says nothing.
        if self.last_ended < command {
            (self.ended, self.last_ended) = (Some(command), command);
        }
    }

    /// So many Syncs are ignored by the server, unless the COPY that runs has failed.
    pub(crate) fn ignored(&mut self, syncs: u32) {
        self.ignored = self.ignored.saturating_add(syncs);
    }

    /// The client did not expect the COPY of this command: it has sent more than the server takes in COPY.
    pub(crate) fn burdened(&mut self, command: u64) {
        if self.burdened.last() != Some(&command) {
            self.burdened.push(command);
        }
    }

    /// The client has sent something in COPY that the server does not take there.
    pub(crate) fn strayed(&mut self) {
        if self.guess == Guess::No {
            self.guess = Guess::Strayed;
        }
    }

    /// The COPY of this command is complete, or one of several that it began.
    pub(crate) fn copied(&mut self, command: u64) {
        self.ignored = 0;
        self.burdened.retain(|burdened| *burdened >= command);
    }

    /// The COPY of this command has failed; if it was an Execute, the server skips what is behind it.
    pub(crate) fn copy_failed(&mut self, command: u64, executed: bool) {
        self.maybe = self.maybe.saturating_add(std::mem::take(&mut self.ignored));
        let is_skipped = executed && self.maybe == 0;
        if self.guess == Guess::Strayed {
            self.guess = if is_skipped { Guess::No } else { Guess::Refused };
        }
        let burdened = executed && self.burdened.contains(&command);
        self.burdened.retain(|burdened| *burdened > command);
        if self.maybe > 0 && (burdened || self.closes > Self::MOST) {
            self.guess = Guess::Wrong;
        }
    }

    /// A ReadyForQuery has come and no other was owed: how many may have come.
    pub(crate) fn unowed(&mut self) -> u32 {
        if self.guess == Guess::Skipped {
            self.guess = Guess::Wrong;
        }
        let maybe = self.maybe;
        self.maybe = maybe.saturating_sub(1);
        maybe
    }

    /// A ReadyForQuery has come.
    pub(crate) fn ready(&mut self) {
        if self.guess == Guess::Refused {
            self.guess = Guess::Wrong;
        }
    }

    /// Nothing is owed.
    pub(crate) fn rests(&mut self) {
        if self.maybe == 0 {
            self.closes = 0;
            self.burdened.clear();
        }
    }

    /// Whether something is uncertain.
    pub(crate) fn is_there(&self) -> bool {
        self.maybe > 0 || self.question != Question::No
    }

    /// Whether the answers cannot be told apart any more.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.guess == Guess::Wrong
    }

    /// Whether the server has been asked, and has not answered.
    pub(crate) fn is_asked(&self) -> bool {
        self.question != Question::No
    }

    /// Asks: how many Closes have to be sent, and a Sync behind them.
    pub(crate) fn ask(&mut self) -> u32 {
        let closes = self.closes.saturating_add(1);
        self.question = Question::Asked { closes, seen: 0 };
        closes
    }

    /// Whose this frame of the server's is.
    pub(crate) fn hears(&mut self, tag: u8) -> Whose {
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
                *self = Self { last_ended: self.last_ended, ..Self::default() };
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
