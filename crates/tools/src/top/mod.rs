//! `pgleash top`: the live page in a terminal, of a pgleash here or elsewhere.

pub mod decisions;
pub mod draw;
pub mod keys;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::mpsc::TryRecvError;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event;
use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::top::keys::{Going, Key, Screen};

/// Shows the pgleash whose admin API is at `base`, such as `http://127.0.0.1:9632`, until the user has seen
/// enough. Takes the terminal, and gives it back as it was.
///
/// # Errors
/// There is no terminal, or it cannot be written to.
pub fn run(base: &str) -> io::Result<()> {
    let answers = crate::admin_client::follow(base)?;
    let mut screen = Screen::new(base.to_owned());
    let mut terminal = ratatui::try_init()?;
    let ended = loop {
        match answers.try_recv() {
            Ok(answer) => screen.take(answer, pgleash_clock::now()),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {}
        }
        if let Err(error) = terminal.draw(|frame| draw::draw(frame, &screen, pgleash_clock::now())) {
            break Err(error);
        }
        match pressed(&screen) {
            Ok(Some(key)) if screen.press(key) == Going::Over => break Ok(()),
            Ok(_) => {}
            Err(error) => break Err(error),
        }
    };
    ratatui::restore();
    ended
}

/// One screenful as text, `width` characters wide, with every checkout.
///
/// # Errors
/// Why there is no snapshot.
pub fn once(base: &str, width: u16) -> Result<String, String> {
    let answer = crate::admin_client::Feed::new(base).ask()?;
    let checkouts: usize = answer.view.pools.iter().map(|pool| pool.holders.len()).sum();
    let height = checkouts + answer.view.pools.len() + 13 + usize::from(draw::DECISIONS);
    let height = u16::try_from(height).unwrap_or(u16::MAX);
    let mut screen = Screen::new(base.to_owned());
    screen.take(Ok(answer), pgleash_clock::now());
    Ok(text_of(&screen, width, height))
}

fn text_of(screen: &Screen, width: u16, height: u16) -> String {
    let mut terminal = match Terminal::new(TestBackend::new(width, height)) {
        Ok(terminal) => terminal,
        Err(never) => match never {},
    };
    let drawn = terminal.draw(|frame| draw::draw(frame, screen, pgleash_clock::now()));
    drawn.map_or_else(
        |never| match never {},
        |frame| {
            let lines = frame.buffer.content().chunks(usize::from(width));
            let text = |line: &[ratatui::buffer::Cell]| {
                line.iter().map(ratatui::buffer::Cell::symbol).collect::<String>()
            };
            lines.map(|line| format!("{}\n", text(line).trim_end())).collect()
        },
    )
}

/// Waits a little for a key that does something.
fn pressed(screen: &Screen) -> io::Result<Option<Key>> {
    const PATIENCE: Duration = Duration::from_millis(200);
    if !event::poll(PATIENCE)? {
        return Ok(None);
    }
    match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => Ok(meaning(key, screen)),
        _ => Ok(None),
    }
}

fn meaning(key: KeyEvent, screen: &Screen) -> Option<Key> {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return matches!(key.code, KeyCode::Char('c' | 'd')).then_some(Key::Quit);
    }
    Some(match key.code {
        KeyCode::Esc => Key::Escape,
        KeyCode::Enter => Key::Enter,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Backspace if screen.typing => Key::Erase,
        KeyCode::Char(character) if screen.typing => Key::Typed(character),
        KeyCode::Char('q') => Key::Quit,
        KeyCode::Char('k') => Key::Up,
        KeyCode::Char('j') => Key::Down,
        KeyCode::Char('p') => Key::NextPool,
        KeyCode::Char('s') => Key::Suspects,
        KeyCode::Char('d') => Key::Decisions,
        KeyCode::Char('/') => Key::Search,
        _ => return None,
    })
}
