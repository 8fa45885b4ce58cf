//! The terminal while `top` draws on it: a screen of its own, keys one by one, and everything as before at the end, a panic included.
//!
//! Never decides what is drawn or what a key does.

use std::{
    io::{self, Write as _},
    panic,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use console::Term;
use rustix::termios::{self, OptionalActions, SpecialCodeIndex, Termios};
use tokio::task::{JoinHandle, spawn_blocking};

use super::{screen::Size, state::Key};

/// A screen of its own, without a cursor, on which long lines are cut.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// The longest that a read waits, in tenths of a second, and what is too short for that: then there is no terminal any more.
const READ_TENTHS: u8 = 2;
const TOO_SOON: Duration = Duration::from_millis(50);

/// How the terminal was; nothing while it is so.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Given back when dropped.
pub(super) struct Terminal {
    /// A read under way: the next keys are its.
    reading: Option<JoinHandle<io::Result<Vec<Key>>>>,
}

impl Terminal {
    pub(super) fn open() -> io::Result<Terminal> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // A read returns soon, keys or not, so that it can be waited for at the end.
        raw.special_codes[SpecialCodeIndex::VMIN] = 0;
        raw.special_codes[SpecialCodeIndex::VTIME] = READ_TENTHS;
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        *lock() = Some(before);
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |what| {
            restore();
            usual(what);
        }));
        let terminal = Terminal { reading: None };
        write(ENTER)?;
        Ok(terminal)
    }

    /// 24 lines of 80 characters if the terminal does not say.
    pub(super) fn size(&self) -> Size {
        let (rows, columns) = Term::stdout().size_checked().unwrap_or_default();
        let or = |number: u16, usual| if number == 0 { usual } else { usize::from(number) };
        Size { rows: or(rows, 24), columns: or(columns, 80) }
    }

    /// Draws the whole screen.
    pub(super) fn draw(&self, lines: &[String]) -> io::Result<()> {
        let mut out = String::new();
        for (n, line) in lines.iter().enumerate() {
            out.push_str(&format!("\x1b[{};1H{line}\x1b[K", n + 1));
        }
        write(&(out + "\x1b[J"))
    }

    /// Waits for keys. If this is dropped while it waits, the next call gets them.
    pub(super) async fn keys(&mut self) -> io::Result<Vec<Key>> {
        loop {
            let keys = self.reading.get_or_insert_with(|| spawn_blocking(read)).await;
            self.reading = None;
            let keys = keys.map_err(io::Error::other)??;
            if !keys.is_empty() {
                return Ok(keys);
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Makes the terminal as it was. If that fails, there is no terminal any more.
fn restore() {
    if let Some(before) = lock().take() {
        let _ = write(LEAVE);
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, &before);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

fn lock() -> MutexGuard<'static, Option<Termios>> {
    BEFORE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read() -> io::Result<Vec<Key>> {
    let (mut bytes, began) = ([0; 64], Instant::now());
    let count = rustix::io::retry_on_intr(|| rustix::io::read(io::stdin(), &mut bytes))?;
    if count == 0 && began.elapsed() < TOO_SOON {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(keys(&bytes[..count]))
}

fn keys(mut bytes: &[u8]) -> Vec<Key> {
    let mut keys = Vec::new();
    loop {
        let (key, rest) = match bytes {
            [] => return keys,
            [0x1b, b'[' | b'O', b'A', rest @ ..] | [b'k', rest @ ..] => (Key::Up, rest),
            [0x1b, b'[' | b'O', b'B', rest @ ..] | [b'j', rest @ ..] => (Key::Down, rest),
            [0x1b, b'[' | b'O', _, rest @ ..] => (Key::Other, rest),
            [b'\r' | b'\n', rest @ ..] => (Key::Enter, rest),
            [b's', rest @ ..] => (Key::Sort, rest),
            [b'p', rest @ ..] => (Key::Pause, rest),
            [b'y', rest @ ..] => (Key::Yes, rest),
            [b'?', rest @ ..] => (Key::Help, rest),
            [b'q', rest @ ..] => (Key::Quit, rest),
            [0x03, rest @ ..] => (Key::Interrupt, rest),
            [_, rest @ ..] => (Key::Other, rest),
        };
        keys.push(key);
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_and_letters_are_keys_and_other_sequences_are_not() {
        use Key::{Down, Enter, Interrupt, Other, Pause, Quit, Up, Yes};
        assert_eq!(keys(b"jk\x1b[A\x1bOB\r"), [Down, Up, Up, Down, Enter]);
        assert_eq!(keys(b"py\x03q"), [Pause, Yes, Interrupt, Quit]);
        assert_eq!(keys(b"\x1b[C\x1bx\xff"), [Other, Other, Other, Other]);
        assert_eq!(keys(b""), []);
    }
}
