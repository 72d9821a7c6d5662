//! Who tried to log in, as the access line shows it. An operator has to see which user cannot
//! get in, and which typing error a service has been given; and a password that somebody types in
//! the place of the name must not get into a log. So:
//!
//! * the name of a user is shown whole;
//! * of any other name the first half is shown, 8 characters at most: enough to know a typing
//!   error by, too little to be a credential;
//! * a text that would do as a password is not shown at all.

use crate::profiles::{check_password, is_invisible};
use crate::secret::Secret;

/// Of a name, in characters; the rule for names allows no more.
const LONGEST: usize = 32;
/// Of a name that is no user's.
const LONGEST_STRANGE: usize = 8;
const COULD_BE_A_PASSWORD: &str = "(not shown: could be a password)";

/// A name that may stand in a log: short, and nothing in it moves a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::pipeline) struct TriedUser(String);

impl TriedUser {
    /// A user of this name exists.
    pub(in crate::pipeline) fn known(name: &str) -> Self {
        Self(shortened(name, LONGEST))
    }

    /// No user is known by this name.
    pub(in crate::pipeline) fn unknown(name: &str) -> Self {
        if check_password(&Secret::new(name)).is_ok() {
            return Self(COULD_BE_A_PASSWORD.to_owned());
        }
        // Nobody counts the letters of what is longer than any name.
        let length = name.chars().take(2 * LONGEST_STRANGE).count();
        Self(shortened(name, length / 2))
    }

    pub(in crate::pipeline) fn text(&self) -> &str {
        &self.0
    }
}

fn shortened(name: &str, most: usize) -> String {
    let mut letters = name.chars();
    let mut text: String = letters.by_ref().take(most).map(shown).collect();
    if letters.next().is_some() {
        text.push('…');
    }
    text
}

/// What could make a terminal or an editor show something else than what was written.
fn shown(letter: char) -> char {
    match letter.is_control() || is_invisible(letter) {
        true => char::REPLACEMENT_CHARACTER,
        false => letter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_named_and_a_stranger_by_half() {
        assert_eq!(TriedUser::known("jürgen").text(), "jürgen");
        for (name, shown) in [
            ("amdin", "am…"),
            ("prometheus-scraper-of-the-shop", "promethe…"),
            ("", ""),
            ("x", "…"),
            ("Passw0rd", "Pass…"),
        ] {
            assert_eq!(TriedUser::unknown(name).text(), shown, "{name}");
        }
        let long = "n".repeat(1 << 20);
        assert_eq!(TriedUser::unknown(&long).text(), "nnnnnnnn…");
        assert_eq!(TriedUser::known(&long).text().chars().count(), LONGEST + 1);
    }

    #[test]
    fn what_would_do_as_a_password_is_not_shown() {
        for password in ["S3cret!pw", "Gate-Passw0rd!", "aB3$aB3$aB3$"] {
            assert_eq!(TriedUser::unknown(password).text(), COULD_BE_A_PASSWORD);
        }
    }

    #[test]
    fn nothing_in_it_moves_a_cursor() {
        let odd = "a\r\nb\u{9b}2Jc\u{202e}d\u{2028}\u{feff}\u{7f}\u{e0041}";
        let shown = TriedUser::known(odd).0;
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert_eq!(shown.matches('\u{fffd}').count(), 8, "{shown:?}");
    }
}
