//! Tollgate: an authenticating reverse proxy for services where one logs in with a
//! password, gets a token that expires, and sends it as a bearer.
//!
//! ```text
//!           client                                                   operator
//!             |                                                         |
//!  +----------v-----------+                                   +---------v---------+
//!  | listener             |  accept, TLS, h1/h2,              | admin             |
//!  |  mod -> tls -> http  |  one task per connection          |  health, metrics  |
//!  +----------+-----------+                                   +---------+---------+
//!             | Request + Peer                                          | looks at
//!  +----------v--------------------------- pipeline ---------+          |
//!  | handle   opens the Record                               |          |
//!  |   1 route          RouteTable::find   -> Route          |          |
//!  |   2 authenticate   credential         -> Client  - - - -|- ->  identity  token
//!  |   3 limit          Limiter::admit     -> go on          |          ^
//!  |        |                          \                     |          |
//!  |   Target::Upstream             Target::UsersNode        |          |
//!  |   4 inject    strip + lease    5' users_node  - - - - - |- - - - - +
//!  |        |      -> Outbound          login/logout/users   |
//!  |   5 forward   send, repeat once    (or relay)           |
//!  |        |                           |                    |
//!  |   6 headers   hygiene on the way back                   |
//!  |                                                         |
//!  |   any stage may return a Rejection -> reject, one table |
//!  | handle   closes the Record: log line, metrics           |
//!  +----------+----------------------------------------------+
//!             | Outbound
//!  +----------v-----------+         +-------------------------------+
//!  | upstream             |  Lease  | session: one renewer task     |
//!  |  connections         |<--------|  login, renew ahead, replace  |
//!  +----------+-----------+         +-------------------------------+
//!             |
//!           service  (or emulator)
//! ```
//!
//! Reading order: `pipeline/mod.rs`, then `app.rs`, then the stage you want to change.
//! A module uses only rows below its own; `tests/suite/architecture.rs` keeps it so.

// 9: starts the program
pub mod cli;
// 8: joins the parts
pub mod app;
// 7: edges: sockets and people
pub mod admin;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod listener;
// 6: the request
pub mod pipeline;
// 5: what was handed out
pub mod token;
// 4: who calls; what is behind; the log
pub mod identity;
pub mod logging;
pub mod upstream;
// 3: what outlives a restart
pub mod store;
// 2: settings
pub mod config;
// 1: the service behind as data, life, numbers, names
pub mod dns;
pub mod lifecycle;
pub mod metrics;
pub mod profiles;
// 0: leaves
pub mod accept_backoff;
mod backoff;
pub mod clock;
pub mod error_chain;
pub mod identity_hasher;
pub mod secret;
pub mod shares;
pub mod staggered;
mod sync;
pub mod via;
mod waker;
