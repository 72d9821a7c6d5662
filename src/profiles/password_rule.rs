//! Which passwords users may have.

use crate::secret::Secret;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "Password doesn't meet complexity requirements: length between 8 and 64 characters, \
     and at least one digit, one uppercase letter, one lowercase letter and one special character"
)]
pub struct BadPassword;

/// 8 to 64 characters with a digit, an upper, a lower and a special one.
pub fn check_password(password: &Secret) -> Result<(), BadPassword> {
    let text = password.expose();
    let has = |kind: fn(&char) -> bool| text.chars().any(|letter| kind(&letter));
    let good = (8..=64).contains(&text.chars().count())
        && has(char::is_ascii_digit)
        && has(char::is_ascii_uppercase)
        && has(char::is_ascii_lowercase)
        && has(char::is_ascii_punctuation);
    if good { Ok(()) } else { Err(BadPassword) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_rule_requires_all_four_kinds() {
        for good in ["Passw0rd!", "aB3~aB3~"] {
            assert!(check_password(&Secret::new(good)).is_ok(), "{good}");
        }
        let long = format!("aB3~{}", "x".repeat(61));
        for bad in [
            "aB3~",
            "password1!",
            "PASSWORD1!",
            "Password!",
            "Password1",
            long.as_str(),
        ] {
            assert!(check_password(&Secret::new(bad)).is_err(), "{bad}");
        }
    }
}
