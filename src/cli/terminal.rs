//! The terminal: its width, whether it gets colour, and what may be written to it.

use std::{
    fmt::{self, Write as _},
    io::IsTerminal as _,
};

use clap::{Args, ValueEnum};

/// The longest line where there is no terminal.
const WIDTH: usize = 120;

/// No table is drawn for less.
const LEAST_WIDTH: usize = 40;

/// How text is laid out.
#[derive(Debug, Args)]
pub(super) struct LayoutArgs {
    /// Whether to use colour: `auto` does on a terminal, unless `NO_COLOR` is set.
    #[arg(long, value_enum, default_value_t = Color::Auto, env = "TOWPATH_COLOR")]
    color: Color,
    /// The longest line, in characters. Default: that of the terminal, or 120.
    #[arg(long, value_name = "N", env = "TOWPATH_WIDTH")]
    width: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Color {
    /// On a terminal.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How text is laid out: for one output, decided once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// The longest line, in characters.
    pub(super) width: usize,
    /// Whether there is colour.
    pub(super) color: bool,
}

impl LayoutArgs {
    /// For standard output as it is.
    pub(super) fn layout(&self) -> Layout {
        let is_terminal = std::io::stdout().is_terminal();
        let terminal =
            || terminal_size::terminal_size().filter(|_| is_terminal).map(|(width, _)| width.0.into());
        let width = self.width.or_else(terminal).unwrap_or(WIDTH).max(LEAST_WIDTH);
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let color = match self.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => is_terminal && !refused,
        };
        Layout { width, color }
    }
}

/// A colour of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    /// Something passes.
    Green,
    /// Something is denied.
    Red,
    /// Something is of less interest.
    Dim,
    /// A heading.
    Bold,
}

impl Layout {
    /// The text in this colour, if there is colour.
    pub(super) fn paint(self, paint: Paint, text: &str) -> String {
        let code = match paint {
            Paint::Green => 32,
            Paint::Red => 31,
            Paint::Dim => 2,
            Paint::Bold => 1,
        };
        if self.color && !text.is_empty() {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// A text without control characters, which could steer a terminal: they are written as Rust would.
pub(super) struct Printable<'a>(pub(super) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() || is_invisible(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Characters that change the direction of text or show nothing.
const fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Breaks a text at blanks into lines of at most `width` characters; those after the first begin with `indent` blanks. A
/// word that is longer has a line of its own.
pub(super) fn wrapped(text: &str, width: usize, indent: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut line = String::new();
    let mut is_empty = true;
    for word in text.split(' ') {
        let length = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if !is_empty && length > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_broken_at_blanks() {
        assert_eq!(wrapped("one two three", 20, 2), ["one two three"]);
        assert_eq!(wrapped("one two three", 8, 2), ["one two", "  three"]);
        assert_eq!(wrapped("extraordinary two", 5, 2), ["extraordinary", "  two"]);
        assert_eq!(wrapped("  - indented text", 12, 4), ["  - indented", "    text"]);
    }

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(Printable("a\u{1b}[31m\n\u{202e}b").to_string(), "a\\u{1b}[31m\\n\\u{202e}b");
        assert_eq!(Printable("plain-text_1.2/é").to_string(), "plain-text_1.2/é");
    }

    #[test]
    fn colour_is_only_there_if_asked_for() {
        let layout = |color| Layout { width: 80, color };
        assert_eq!(layout(false).paint(Paint::Red, "x"), "x");
        assert_eq!(layout(true).paint(Paint::Red, "x"), "\u{1b}[31mx\u{1b}[0m");
        assert_eq!(layout(true).paint(Paint::Red, ""), "");
    }
}
