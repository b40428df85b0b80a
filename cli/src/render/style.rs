//! Colours.

/// How a word is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

/// Paints words, or leaves them as they are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Painter {
    pub(super) colours: bool,
}

impl Painter {
    /// Every style takes the same number of bytes: the table measures them as text, and its columns then still line up.
    pub(super) fn paint(self, style: Style, text: &str) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let code = match style {
            Style::Plain => "39",
            Style::Bold => "01",
            Style::Dim => "02",
            Style::Green => "32",
            Style::Yellow => "33",
            Style::Red => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
