//! The access log: one line and a few counts per request. `entry` collects what is known of a
//! request, `line` writes it, and `logged_body` closes the entry when the response has been sent.
//! Start with `entry`.

pub(super) mod attempted_user;
pub(super) mod entry;
pub(super) mod line;
pub(super) mod logged_body;
