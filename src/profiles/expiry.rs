//! The end of a token's life, as a date in a JSON string.

use jiff::Timestamp;
use jiff::fmt::temporal::Pieces;

/// Date and time with a space, whole seconds, always `+00:00`. Not RFC 3339, and
/// real parsers want exactly this (protocol sheet, section 1.1).
const EXPIRY_FORMAT: &str = "%Y-%m-%d %H:%M:%S+00:00";

/// `2021-07-25 08:50:48+00:00` for seconds since 1970.
pub fn format_expiry(unix_seconds: i64) -> String {
    let time = Timestamp::from_second(unix_seconds).unwrap_or(Timestamp::MAX);
    time.strftime(EXPIRY_FORMAT).to_string()
}

/// Seconds since 1970; any offset and a fraction are understood, as are RFC 3339's `T` and `Z`.
/// The last day of the year 9999, which services write for "never", is past what [`Timestamp`]
/// holds: it is read as the last moment that there is.
pub fn parse_expiry(text: &str) -> Option<i64> {
    let text = text.trim();
    let time = text
        .parse()
        .or_else(|_| Timestamp::strptime("%Y-%m-%d %H:%M:%S%.f%:z", text));
    match time {
        Ok(time) => Some(time.as_second()),
        Err(_) => {
            let pieces = Pieces::parse(text).ok()?;
            let is_complete = pieces.time().is_some() && pieces.offset().is_some();
            (is_complete && pieces.date().year() == 9999).then_some(Timestamp::MAX.as_second())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiry_has_the_captured_form_and_reads_back() {
        let text = format_expiry(1_627_203_048);
        assert_eq!(text, "2021-07-25 08:50:48+00:00");
        assert_eq!(parse_expiry(&text), Some(1_627_203_048));
        assert_eq!(parse_expiry("2021-07-25T08:50:48Z"), Some(1_627_203_048));
        assert_eq!(
            parse_expiry("2021-07-25 10:50:48.25+02:00"),
            Some(1_627_203_048)
        );
        for never in ["9999-12-31 23:59:59+00:00", "9999-12-31T23:59:59.999Z"] {
            assert_eq!(parse_expiry(never), Some(253_402_207_200), "{never}");
        }
        for bad in [
            "",
            "null",
            "tomorrow",
            "2021-07-25",
            "9999-12-31",
            "9999-12-32T00:00:00Z",
            "2021-13-25 08:50:48+00:00",
            "1627203048",
        ] {
            assert_eq!(parse_expiry(bad), None, "{bad}");
        }
    }
}
