//! Tollgate: an authenticating reverse proxy for services where one logs in with a password, gets a
//! token that expires, and sends it as a bearer token.
//!
//! ```text
//!            client                                                   operator
//!              |                                                         |
//!   +----------v-----------+                                   +---------v---------+
//!   | listener             |  accept, framing guard, TLS,      | admin             |
//!   |  tcp -> tls -> http  |  h1/h2, one task per connection   |  health, metrics, |
//!   +----------+-----------+                                   |  API keys         |
//!              | Request + Peer                                +---------+---------+
//!   +----------v--------------------------- pipeline ---------+          | reads,
//!   | handle   opens the AccessLogEntry                       |          | commands
//!   |   1 route          RouteTable::find   -> Route          |          |
//!   |   2 authenticate   credential         -> Client  - - - -|- ->  identity  token
//!   |   3 limit          Limiter::admit     -> go on          |          ^
//!   |        |                          \                     |          |
//!   |   Target::Upstream             Target::UsersNode        |          |
//!   |   4 inject    Inbound, Lease   5' users_node  - - - - - |- - - - - +
//!   |        |      -> Outbound          login/logout/users   |
//!   |   5 forward   send, repeat once    (or relay)           |
//!   |        |                           |                    |
//!   |   6 headers   hygiene on the way back                   |
//!   |                                                         |
//!   |   any stage may return a Rejection -> reject, one table |
//!   | handle   closes the AccessLogEntry: log line, metrics   |
//!   +----------+----------------------------------------------+
//!              | Outbound
//!   +----------v-----------+         +-------------------------------+
//!   | upstream             |  Lease  | session: one renewer task     |
//!   |  transport           |<--------|  login, renew ahead, replace  |
//!   +----------+-----------+         +-------------------------------+
//!              |
//!            Webapp  (or emulator)
//!
//!   beside it:  config/reload --Config--> app --LiveRules--> pipeline
//!               lifecycle --drain, abort--> everything that runs
//! ```
//!
//! Reading order: `pipeline/mod.rs`, then `app/mod.rs`, then the stage that you want to change. The
//! modules below are in rows, the highest first; a module uses only rows below its own, and
//! `tests/suite/architecture/` checks it.

// Row 9
// The commands: `serve`, `check`, `store`, `health` and others.
pub mod cli;

// Row 8
// Builds the parts, joins them, starts, reloads and drains them.
pub mod app;

// Row 7
// The operator's listener: health, readiness, metrics, keys and users.
pub mod admin;
// An emulated Webapp for the first run and tests.
#[cfg(feature = "emulator")]
pub mod emulator;
// Clients' connections: TCP, TLS, HTTP/1 and HTTP/2.
pub mod listener;

// Row 6
// One request from its head to the end of its response.
pub mod pipeline;

// Row 5
// The tokens of clients: issued or learned, until when they are valid.
pub mod token;

// Row 4
// Who may call: users, passwords, API keys.
pub mod identity;
// The log and its writer thread.
pub mod logging;
// The service behind the gateway: its login, connections and health.
pub mod upstream;

// Row 3
// What outlives a restart: a file, or a Redis server shared by several gateways.
pub mod store;

// Row 2
// The configuration as written and as run, and its reload.
pub mod config;

// Row 1
// Back-off of accept loops.
pub mod accept_backoff;
// Name resolution.
pub mod dns;
// Named tasks, drain and abort, readiness.
pub mod lifecycle;
// All metrics.
pub mod metrics;
// A service as data: routes, limits, login, error format.
pub mod profiles;
// Fair shares of a limited number of permits.
pub mod shares;
// A waker for futures that outlive the task that polls them.
mod waker;
// Files that are read again when they change.
pub mod watched_files;

// Row 0
// Pauses between attempts, with jitter.
mod backoff;
// Wall-clock and monotonic time.
pub mod clock;
// The causes of an error, for messages.
pub mod error_chain;
// A hasher for keys that are hashes already.
pub mod identity_hasher;
// A timer whose deadline moves often.
mod lazy_timer;
// Secrets and where they are read from.
pub mod secret;
// Staggered attempts ("Happy Eyeballs").
pub mod staggered;
// Locks and atomics; loom's in the model tests.
mod sync;
// The gateway's name in `Via`.
pub mod via;
