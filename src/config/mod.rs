//! The configuration: its checked types here, the file format and its checks in `file/`, the reload
//! in `reload/`. A value of these types has been parsed and checked. Start at `Config`, then
//! `file/mod.rs`.

mod describe;
mod describe_login;
mod describe_routes;
mod describe_users;
mod difference;
mod display;
mod endpoint_policy;
mod file;
mod path_prefix;
mod pattern;
mod problem;
mod reload;
mod request_rules;
mod shipped;
mod store_config;
#[cfg(test)]
mod tests;
mod upstream_address;
mod upstream_config;
mod users_config;

pub use difference::Difference;
pub use endpoint_policy::{
    AcceptedStatus, AddressResolution, EjectionRules, EndpointAffinity, EndpointPolicy,
    HealthCheckRules,
};
pub use file::{DEFAULT_FILE, EmulatorAlone, load_emulator};
pub use file::{KeyLines, is_name, load, parse, parse_quota};
pub use path_prefix::PathPrefix;
pub use pattern::{BadPattern, plain};
pub(crate) use problem::nearest;
pub use problem::{LoadedConfig, Problem, ProblemTable, Problems};
pub use reload::ConfigWatcher;
pub use request_rules::{
    AddressBlock, AllowedFields, METHOD_PARAMETER, OVERRIDE_FIELDS, OverrideField, RequestRules,
    override_field,
};
pub use shipped::{ProfileRouting, shipped_routes};
pub use store_config::{
    MasterDiscovery, ServerAddress, SharedStoreConfig, StoreConfig, StorePlace, StoreTls,
};
pub use upstream_address::{BaseAddress, Http2Mode, ProxyConfig, ProxyLogin, Trust};
pub use upstream_config::{Login, UpstreamConfig};
pub use users_config::{
    AtTokenCap, DirectoryKind, FirstAdmin, FirstPassword, OnPasswordChange, UnknownTokens,
    UserRule, UsersConfig,
};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::Method;

pub use crate::profiles::UsersCall;
use crate::profiles::{Profile, Role};
use crate::secret::SecretSource;

/// The whole effective configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The kind of service behind the gateway; chooses the format of errors.
    pub profile: &'static Profile,
    /// Request threads, each with its own runtime, sockets and upstream pool.
    pub workers: usize,
    pub listeners: Vec<Listener>,
    pub operator: Operator,
    /// At least one; their order is that of `LiveRules::upstreams`.
    pub upstreams: Vec<UpstreamConfig>,
    /// Position in `upstreams` of the one that has the users, with `users.directory = "webapp"`; the
    /// first one otherwise.
    pub users_upstream: usize,
    pub users: UsersConfig,
    pub api_keys: Vec<ApiKey>,
    /// In match order: the file's own first, then the profile's.
    pub routes: Vec<Arc<Route>>,
    pub limits: Limits,
    pub http: RequestRules,
    pub store: StoreConfig,
    pub drain: Drain,
    pub log: Log,
    pub emulator: Option<Emulator>,
}

impl Config {
    /// The upstream that has the users, with `users.directory = "webapp"`.
    pub fn users_upstream(&self) -> &UpstreamConfig {
        &self.upstreams[self.users_upstream]
    }
}

/// A bound address with its TLS and protocol settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    pub address: SocketAddr,
    /// None: plain HTTP, allowed on loopback or with `allow_plaintext`.
    pub tls: Option<ListenerTls>,
    pub max_connections: usize,
    pub handshake_timeout: Duration,
    /// From the first byte of a request to the end of its header section.
    pub header_timeout: Duration,
    /// A kept-alive connection without a request is closed after this long.
    pub idle_timeout: Duration,
    /// Bytes of one header section, request line included.
    pub max_header_bytes: usize,
    pub max_headers: usize,
    /// HTTP/2 streams per connection.
    pub max_streams: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ListenerTls {
    /// Chosen by SNI against the names in each certificate; the first one serves clients without
    /// SNI, or with an unknown name.
    pub certificates: Vec<CertificateFiles>,
    /// 1.3 only; default false, that is 1.2 and 1.3.
    pub only_tls13: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The operator's own listener: health, readiness, metrics. Plain HTTP.
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    pub address: SocketAddr,
    /// Allows making and deleting API keys there; None: that is switched off.
    pub token: Option<SecretSource>,
}

/// A client that calls with a key.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiKey {
    pub name: Arc<str>,
    /// SHA-256 of each key that is valid for this client; several during a rotation.
    pub digests: Vec<[u8; 32]>,
    /// Seconds since 1970.
    pub expires: Option<i64>,
    pub role: Role,
    /// Empty: the monitoring routes only.
    pub paths: Vec<PathPattern>,
    /// Empty: every method.
    pub methods: Vec<Method>,
    /// Names of the upstreams that it may call; empty: all.
    pub upstreams: Vec<Arc<str>>,
    /// This key's own limit, besides the policies.
    pub limit: Option<Quota>,
}

/// One entry of the route table. What the routes of many upstreams have in common is shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// The metrics label. Unique, but that each upstream has its own copy of a shipped route.
    pub name: Arc<str>,
    /// Lower case, without a final dot; `*.example.org` takes one or more labels in place of the
    /// star; empty: any host.
    pub hosts: Arc<[String]>,
    /// The path as the client sends it.
    pub path: PathPattern,
    /// Removed from the path before it is forwarded.
    pub strip_prefix: Option<PathPrefix>,
    /// Whether `Host` is forwarded as the client sent it, in place of the upstream's own.
    pub preserve_host: bool,
    /// Empty: every method. GET covers HEAD; OPTIONS needs no mention.
    pub methods: Arc<[Method]>,
    /// Any one of these lets a request in.
    pub access: Arc<[Access]>,
    pub target: Target,
    /// Name of the upstream that the route belongs to and that `Target::Upstream` leads to.
    pub upstream: Arc<str>,
    /// Which limits count its requests: `Limit::classes` refers to it.
    pub class: Arc<str>,
    /// Monitoring routes carry the upstream's API key, where there is one.
    pub monitoring: bool,
    pub max_body: u64,
    /// Overrides the upstream's first-byte deadline.
    pub first_byte_timeout: Option<Duration>,
    /// Deadline for the whole exchange, bodies included.
    pub timeout: Duration,
    /// A full bucket makes the request wait this long at most before it is refused.
    pub max_wait: Duration,
    /// Override fields that are forwarded on this route.
    pub allow_fields: AllowedFields,
}

/// Segments of a path: literal, `{name}` for exactly one, `*` at the end for the
/// rest. A trailing slash on the request makes no difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathPattern(pub Arc<[Segment]>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Literal(String),
    One(String),
    Rest,
}

/// What a route requires of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Open,
    Token,
    Role(Role),
    ApiKey,
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To `Route::upstream`.
    Upstream,
    UsersNode(UsersCall),
    /// Answers 404, as if the route did not exist.
    Closed,
}

/// A steady rate and the largest burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quota {
    pub requests: u32,
    pub per: Duration,
    pub burst: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    pub policies: Vec<Limit>,
    pub logins_by_peer: Quota,
    /// One user name from one peer.
    pub logins_by_name: Quota,
    /// Requests to the upstream that check unknown tokens, for all peers together that have not
    /// shown a valid one recently.
    pub unknown_tokens: Quota,
    pub unknown_tokens_by_peer: Quota,
    /// Keys one policy remembers; beyond it new keys share one bucket.
    pub max_keys: usize,
    /// Requests inside the gate at once, queued ones included.
    pub max_in_flight: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    pub name: Arc<str>,
    pub key: LimitKey,
    /// Route classes it counts; empty: all.
    pub classes: Vec<Arc<str>>,
    pub quota: Quota,
    /// Counts, and refuses nothing.
    pub dry_run: bool,
}

/// What has a bucket of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// One per client: user or API key.
    Client,
    /// One per peer address; IPv6 by /64.
    Peer,
    /// One per upstream and route class, all clients together: the upstream's own limits.
    Class,
    /// One per upstream, all clients and classes together.
    Upstream,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Drain {
    /// Between readiness off and the end of accepting: time for load balancers to notice.
    pub wait: Duration,
    /// After it, requests still in flight are dropped.
    pub deadline: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub format: LogFormat,
    /// Access lines on or off.
    pub access: bool,
    /// A `tracing` filter, such as `info` or `tollgate=debug`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

/// The emulated services in this process, for the first run. Never for production.
#[derive(Clone, Debug, PartialEq)]
pub struct Emulator {
    /// How many; `each` has the ports of the others.
    pub count: u16,
    /// Of the first.
    pub address: SocketAddr,
    /// Of the first.
    pub control: SocketAddr,
    /// Development certificates and the emulated service's password are made here.
    pub folder: PathBuf,
    pub token_lifetime: Duration,
}

impl Emulator {
    /// Each emulated service: the ports of each are two above those of the one before.
    pub fn each(&self) -> impl Iterator<Item = Self> {
        let above = |address: SocketAddr, index: u16| {
            let port = match address.port() {
                0 => 0, // any free one
                port => port.saturating_add(2 * index),
            };
            SocketAddr::new(address.ip(), port)
        };
        (0..self.count).map(move |index| Self {
            count: 1,
            address: above(self.address, index),
            control: above(self.control, index),
            ..self.clone()
        })
    }
}
