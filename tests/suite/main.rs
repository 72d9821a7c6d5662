//! The whole gate, as its users and operators see it: one file per subject.
#![expect(clippy::unwrap_used, reason = "a test that cannot continue panics")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests spawn clients of their own"
)]

mod access_lines;
mod api_keys;
mod architecture;
mod canary;
mod check_command;
mod clocks;
mod complete_log;
mod container;
mod crash;
mod credentials;
mod described_services;
mod documents;
mod drain;
mod durable;
mod early_responses;
mod endpoints;
mod error_formats;
mod exhaustion;
mod fair_shares;
mod first_run;
mod fleet;
mod forwarding;
mod hanging_disk;
mod harness;
mod health;
mod http2_upstreams;
mod hygiene;
mod limits;
mod login_floods;
mod loops;
mod memory_per_peer;
mod network;
mod operator_listener;
mod overload;
mod password_changes;
mod reached_upstreams;
mod real_clients;
mod refused_api_key;
mod relay;
mod reload;
mod replayed_bodies;
mod request_framing;
mod response_framing;
mod runtime_keys;
mod session;
mod shared;
mod shared_login;
mod store_command;
mod token_caps;
mod unknown_tokens;
mod unreadable_logins;
mod upstream_responses;
mod user_names;
mod users_node;
