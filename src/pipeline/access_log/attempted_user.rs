//! The user name of a login attempt, as the access log shows it. An operator has to see which user
//! cannot log in and which typing error a service was configured with. A password that was typed in
//! place of the name must not get into a log. Therefore:
//!
//! * the name of an existing user is shown in full;
//! * of any other name, the first half is shown, at most 8 characters: enough to recognise a typing
//!   error, too little to serve as a credential;
//! * a text that would be accepted as a password is not shown at all.

use crate::profiles::{check_password, is_invisible};
use crate::secret::Secret;

/// Characters shown of a user's name; the rule for names allows no more.
const MAX_LENGTH: usize = 32;
/// Characters shown of any other name.
const MAX_UNKNOWN_LENGTH: usize = 8;
const COULD_BE_A_PASSWORD: &str = "(not shown: could be a password)";

/// A user name that is safe to log: short, and without characters that move a cursor.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::pipeline) struct AttemptedUser(String);

impl AttemptedUser {
    /// The name of an existing user.
    pub(in crate::pipeline) fn known(name: &str) -> Self {
        Self(shortened(name, MAX_LENGTH))
    }

    /// A name that no user has.
    pub(in crate::pipeline) fn unknown(name: &str) -> Self {
        if check_password(&Secret::new(name)).is_ok() {
            return Self(COULD_BE_A_PASSWORD.to_owned());
        }
        // No need to count the characters of a text that is longer than any name.
        let length = name.chars().take(2 * MAX_UNKNOWN_LENGTH).count();
        Self(shortened(name, length / 2))
    }

    pub(super) fn text(&self) -> &str {
        &self.0
    }
}

fn shortened(name: &str, max: usize) -> String {
    let mut letters = name.chars();
    let mut text: String = letters.by_ref().take(max).map(visible).collect();
    if letters.next().is_some() {
        text.push('…');
    }
    text
}

/// Replaces characters that could make a terminal or an editor show other text than was sent.
fn visible(letter: char) -> char {
    match letter.is_control() || is_invisible(letter) {
        true => char::REPLACEMENT_CHARACTER,
        false => letter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_user_is_shown_in_full_and_an_unknown_name_by_half() {
        assert_eq!(AttemptedUser::known("jürgen").text(), "jürgen");
        for (name, shown) in [
            ("amdin", "am…"),
            ("prometheus-scraper-of-the-shop", "promethe…"),
            ("", ""),
            ("x", "…"),
            ("Passw0rd", "Pass…"),
        ] {
            assert_eq!(AttemptedUser::unknown(name).text(), shown, "{name}");
        }
        let long = "n".repeat(1 << 20);
        assert_eq!(AttemptedUser::unknown(&long).text(), "nnnnnnnn…");
        assert_eq!(
            AttemptedUser::known(&long).text().chars().count(),
            MAX_LENGTH + 1
        );
    }

    #[test]
    fn a_text_that_could_be_a_password_is_not_shown() {
        for password in ["S3cret!pw", "Gate-Passw0rd!", "aB3$aB3$aB3$"] {
            assert_eq!(AttemptedUser::unknown(password).text(), COULD_BE_A_PASSWORD);
        }
    }

    #[test]
    fn no_character_that_moves_a_cursor_is_shown() {
        let odd = "a\r\nb\u{9b}2Jc\u{202e}d\u{2028}\u{feff}\u{7f}\u{e0041}";
        let shown = AttemptedUser::known(odd).0;
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        assert_eq!(shown.matches('\u{fffd}').count(), 8, "{shown:?}");
    }
}
