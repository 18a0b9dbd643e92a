//! The terminal, taken over and given back.

use std::io::{self, Stdout, Write as _, stdout};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::style::Print;
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use crossterm::{execute, queue};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::screen::{Key, Size};
use crate::Endings;

/// Something from the user, or from who ends programs.
pub(super) enum Input {
    Key(Key),
    Resized,
    End,
}

/// A terminal that is ours until this is dropped, also by a panic.
pub(super) struct Terminal {
    out: Stdout,
    events: UnboundedReceiver<Input>,
    endings: Endings,
}

impl Terminal {
    /// Takes it over.
    pub(super) fn open() -> io::Result<Self> {
        // Before anything is changed, so that none of them ends the program without giving the terminal back.
        let endings = Endings::handle(true)?;
        enable_raw_mode()?;
        let (sender, events) = unbounded_channel();
        let mut terminal = Self { out: stdout(), events, endings };
        execute!(terminal.out, EnterAlternateScreen, Hide)?;
        // It ends with the program, or when nobody listens any more.
        std::thread::Builder::new().name("keys".into()).spawn(move || read(&sender))?;
        Ok(terminal)
    }

    pub(super) fn size() -> Size {
        let (columns, lines) = crossterm::terminal::size().unwrap_or((80, 24));
        Size { columns: columns.into(), lines: lines.into() }
    }

    /// Writes the lines over what is there, so that nothing flickers.
    pub(super) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        for (line, at) in lines.iter().zip(0..) {
            queue!(self.out, MoveTo(0, at), Print(line), Clear(ClearType::UntilNewLine))?;
        }
        queue!(self.out, Clear(ClearType::FromCursorDown))?;
        self.out.flush()
    }

    /// The next thing that happens.
    pub(super) async fn input(&mut self) -> Input {
        tokio::select! {
            event = self.events.recv() => event.unwrap_or(Input::End),
            () = self.endings.recv() => Input::End,
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Where the terminal has gone there is nothing to give back.
        drop(execute!(self.out, Show, LeaveAlternateScreen));
        drop(disable_raw_mode());
    }
}

fn read(sender: &UnboundedSender<Input>) {
    while !sender.is_closed() {
        let event = match crossterm::event::poll(Duration::from_millis(200)) {
            Ok(true) => crossterm::event::read(),
            Ok(false) => continue,
            Err(error) => Err(error),
        };
        let input = match event {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => meaning(key),
            Ok(Event::Resize(..)) => Some(Input::Resized),
            Ok(_) => None,
            // The terminal has gone.
            Err(_) => Some(Input::End),
        };
        if let Some(input) = input
            && sender.send(input).is_err()
        {
            return;
        }
    }
}

fn meaning(key: KeyEvent) -> Option<Input> {
    let key = match key.code {
        // In raw mode the terminal makes no signal of it.
        KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => return Some(Input::End),
        KeyCode::Char(char) => Key::Char(char),
        KeyCode::Enter => Key::Enter,
        KeyCode::Esc => Key::Escape,
        KeyCode::Backspace => Key::Backspace,
        KeyCode::Up => Key::Up,
        KeyCode::Down => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        _ => return None,
    };
    Some(Input::Key(key))
}
