//! The whole gate, as its users and operators meet it: one file per promise.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on says so by a panic"
)]
#![expect(
    clippy::disallowed_methods,
    reason = "tests spawn clients of their own"
)]

mod answers;
mod api_keys;
mod architecture;
mod asked_tokens;
mod canary;
mod checking;
mod clients;
mod clocks;
mod container;
mod crash;
mod credentials;
mod documents;
mod drain;
mod durable;
mod early_answers;
mod error_formats;
mod exhaustion;
mod first_run;
mod forwarding;
mod framing_down;
mod framing_up;
mod hanging_disk;
mod harness;
mod health;
mod hygiene;
mod kept_bodies;
mod limits;
mod login_floods;
mod loops;
mod memory_per_peer;
mod network;
mod operator;
mod overload;
mod password_changes;
mod records;
mod refused_api_key;
mod relay;
mod reload;
mod runtime_keys;
mod session;
mod shared;
mod shared_login;
mod shares;
mod store_command;
mod token_caps;
mod unread_logins;
mod user_names;
mod users_node;
mod whole_log;
