//! What a relay sees in the frames that pass, both ways.

use pgleash_wire::frame::{Cut, Frame, FrameError};
use pgleash_wire::message::read_parameter_status;
use pgleash_wire::{ConnActivity, Down, Names, Prepared, ProtocolState, SessionState, Up, Whose, message};

use crate::proxy::relay::outcome::End;
use crate::proxy::relay::{Presence, Relay, Returns, Told, reads_sequences, wanted_up};
use crate::upstream::wire_lease::{Wire, note_parameter, set_parameter};

impl Relay<'_> {
    /// Asks the server, if need be, which Syncs it has answered; whether it has been asked.
    pub(super) fn clear_up(&mut self) -> Result<bool, End> {
        if self.wire.protocol.is_lost() {
            return Err(End::Lost);
        }
        if !self.wire.protocol.holds() || !self.up.ends_frame() {
            return Ok(false);
        }
        let Some(closes) = self.wire.protocol.asks() else { return Ok(false) };
        self.up.put(&mut message::whose_turn(closes));
        Ok(true)
    }

    /// Whether what comes next may go on, though it may read values of sequences that another client left behind:
    /// an error stops the relay, so that they are forgotten first.
    fn may_read_sequences(&self) -> Result<bool, End> {
        if self.own_sequences || !self.up.ends_frame() || !reads_sequences(self.up.unseen()) {
            return Ok(true);
        }
        match self.wire.protocol.conn_activity() {
            ConnActivity::Quiet | ConnActivity::InTransaction => Err(End::Sequences),
            // It has to wait for the answers to what went before.
            ConnActivity::InFlight => Ok(false),
            ConnActivity::AwaitsClient => Ok(true),
        }
    }

    /// Looks at what the client sent, up to what may go on.
    pub(super) fn walk_up(&mut self) -> Result<(), End> {
        if !self.may_read_sequences()? {
            return Ok(());
        }
        let Self { up, wire, state, names, vars, sending, reader, said, holder_state, .. } = self;
        let Wire { protocol, prepared, .. } = &mut **wire;
        // A COPY behind a RESET, in the same text, waits for the client.
        let waits = |protocol: &ProtocolState, state: &SessionState| {
            state.holds() && protocol.conn_activity() != ConnActivity::AwaitsClient
        };
        while !protocol.is_full() && !prepared.is_full() && !protocol.holds() && !waits(protocol, state) {
            let place = up.place();
            let taken = match up.next(|tag| wanted_up(state.mode(), tag)).map_err(End::Violation)? {
                Cut::More => break,
                Cut::Frame(frame, _) if frame.tag == b'X' => {
                    self.presence = Presence::Leaving(None);
                    break;
                }
                Cut::Frame(frame, taken) => {
                    *sending = frame.tag;
                    if let Some(names) = names {
                        names.follow(vars, state.standing());
                        // Perhaps the transaction that has changed something is over by then.
                        if protocol.begins_behind() && !state.in_transaction().is_empty() {
                            names.next_era();
                        }
                    }
                    let fate = names.as_mut().map_or(Up::Pass, |names| prepared.up(frame, names, protocol));
                    if fate != Up::Wait {
                        protocol.begun(frame.tag);
                        state.frame(frame);
                        reader.frame(frame.tag, frame.body);
                    }
                    up.put(prepared.out());
                    match fate {
                        Up::Pass => taken,
                        Up::Renamed(bytes) => {
                            up.drop_next(bytes);
                            taken - bytes
                        }
                        Up::Wait => {
                            up.back_to(place);
                            break;
                        }
                        Up::TooLong => return Err(End::Violation(long_name(*sending))),
                    }
                }
                Cut::Body(piece, taken) => {
                    state.body(piece);
                    reader.body(piece);
                    prepared.up_body(piece);
                    taken
                }
            };
            up.clear(taken);
            // Until its last byte the server has nothing to do: it waits for the client.
            if up.ends_frame() {
                protocol.sent(*sending);
                let found = state.frame_ends(*sending);
                reader.frame_ends(*sending, &holder_state.activity, said);
                if let Some(names) = names {
                    prepared.up_ends(found, names, protocol);
                    up.put(prepared.out());
                    state.run(prepared.take_pins());
                    // From now on it may be over, and others may be told so by the server before pgleash is.
                    if matches!(*sending, b'Q' | b'S') && state.changes_names() {
                        names.meanings_change();
                    }
                }
            }
        }
        Ok(())
    }

    /// Looks at what the server sent. All of it may go on, but for a frame that is needed whole, and for
    /// what the client did not ask for.
    pub(super) fn walk_down(&mut self) -> Result<(), FrameError> {
        let Self { down, wire, state, names, told, last_was_fatal, .. } = self;
        let Wire { protocol, prepared, current, .. } = &mut **wire;
        while !protocol.is_lost() {
            let shared = names.is_some();
            let mut late = Vec::new();
            let (fate, taken) = match down.next(|tag| wanted_from_server(shared, tag))? {
                Cut::More => return Ok(()),
                Cut::Frame(frame, taken) => match protocol.hears(frame.tag, frame.body.first().copied()) {
                    Whose::Ours => {
                        if frame.tag == b'Z' {
                            prepared.settle();
                        }
                        down.drop_next(taken);
                        continue;
                    }
                    Whose::Client(closes) => {
                        if closes > 0 {
                            late = give_back(closes, protocol, prepared, names.as_deref_mut());
                        }
                        protocol.received(frame.tag, frame.body.first().copied());
                        *last_was_fatal = frame.tag == b'E' && is_fatal(frame.body);
                        match frame.tag {
                            b'S' => {
                                note_parameter(current, frame.body);
                                if let Some(mut frame) = follow(told, state, frame.body) {
                                    down.drop_next(taken);
                                    down.put(&mut frame);
                                    continue;
                                }
                            }
                            b'C' => {
                                state.completed(frame.body);
                                // With AND CHAIN, or of a savepoint, it is not idle then.
                                let ends = [b"COMMIT\0".as_slice(), b"ROLLBACK\0"].contains(&frame.body);
                                if let Some(names) = names.as_deref_mut().filter(|_| ends) {
                                    prepared.transaction_over(state.in_transaction(), names);
                                }
                            }
                            b'E' => state.failed(),
                            b'Z' => {
                                let idle = frame.body.first() == Some(&b'I');
                                if let Some(names) = names.as_deref_mut().filter(|_| idle) {
                                    prepared.transaction_over(state.in_transaction(), names);
                                }
                            }
                            _ => {}
                        }
                        (names.as_mut().map_or(Down::Pass, |names| prepared.down(frame, names)), taken)
                    }
                },
                Cut::Body(piece, taken) if shared => (prepared.down_body(piece), taken),
                Cut::Body(_, taken) => (Down::Pass, taken),
            };
            down.put(&mut late);
            match fate {
                Down::Pass => down.clear(taken),
                Down::Drop => down.drop_next(taken),
                Down::Instead(mut frames) => {
                    down.drop_next(taken);
                    down.put(&mut frames);
                }
            }
            if let Some(names) = names
                && down.ends_frame()
            {
                prepared.down_ends(names);
                state.run(prepared.take_pins());
            }
        }
        Ok(())
    }
}

/// CloseCompletes that were taken for answers to a question of ours are the client's.
fn give_back(
    closes: u32,
    protocol: &mut ProtocolState,
    prepared: &mut Prepared,
    mut names: Option<&mut Names>,
) -> Vec<u8> {
    let frame = Frame { tag: b'3', body_len: 0, body: &[] };
    let mut out = Vec::new();
    for _ in 0..closes {
        protocol.received(frame.tag, None);
        let fate = names.as_deref_mut().map_or(Down::Pass, |names| {
            let fate = prepared.down(frame, names);
            prepared.down_ends(names);
            fate
        });
        if fate == Down::Pass {
            message::close_complete(&mut out);
        }
    }
    out
}

/// Body bytes of an ErrorResponse in which its severity stands: it comes first, in words and in code.
const SEVERITY: usize = 64;

/// Whether an ErrorResponse ends the connection ("Error and Notice Message Fields").
fn is_fatal(body: &[u8]) -> bool {
    let fields = &body[..body.len().min(SEVERITY)];
    fields.split(|byte| *byte == 0).any(|field| matches!(field, b"VFATAL" | b"VPANIC"))
}

/// How many body bytes of a server's frame with this tag are looked at at once.
const fn wanted_from_server(shared: bool, tag: u8) -> usize {
    match tag {
        b'Z' => 1,
        b'E' if shared => Prepared::wanted_down(tag),
        b'E' => SEVERITY,
        b'S' => usize::MAX,
        b'C' => 64,
        _ if shared => Prepared::wanted_down(tag),
        _ => 0,
    }
}

const fn long_name(tag: u8) -> FrameError {
    FrameError::LongName { tag, limit: Prepared::NAMES }
}

/// Keeps what the client is told true to a ParameterStatus. What it has set back is told as it will be; then there is
/// another frame to be sent.
fn follow(told: &mut Told<'_>, state: &mut SessionState, body: &[u8]) -> Option<Vec<u8>> {
    let (name, value) = read_parameter_status(body)?;
    let key = name.to_ascii_lowercase();
    state.reported(&key);
    let Returns { own, greeted, defaults } = told.returns;
    let is_back = state.resets(&key)
        && own.contains_key(&key)
        && defaults.get(&key).is_none_or(|default| default == value);
    let back = greeted.get(name).filter(|back| is_back && *back != value);
    set_parameter(told.told, name, back.map_or(value, String::as_str));
    back.map(|back| {
        let mut frame = Vec::new();
        message::parameter_status(&mut frame, name, back);
        frame
    })
}
