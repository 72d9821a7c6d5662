//! Label enums, and counter families indexed by them without hashing.

use std::marker::PhantomData;

use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

use super::family;

/// A fixed set of label values.
pub trait LabelSet: Copy + 'static {
    const NAME: &'static str;
    const ALL: &'static [Self];
    fn text(self) -> &'static str;
    fn index(self) -> usize;
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident as $label:literal { $($variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($variant),+ }

        impl LabelSet for $name {
            const NAME: &'static str = $label;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            fn text(self) -> &'static str { match self { $(Self::$variant => $text),+ } }
            fn index(self) -> usize { self as usize }
        }
    };
}

label!(
    /// The party responsible for a response.
    Blame as "blame" { None = "none", Client = "client", Gateway = "gateway", Upstream = "upstream" }
);
label!(
    /// Why the gateway itself refused a request.
    Reason as "reason" {
        BadRequest = "bad_request", NoRoute = "no_route", Method = "method",
        Unauthenticated = "unauthenticated", Forbidden = "forbidden", TooMany = "too_many",
        TooLarge = "too_large", Overloaded = "overloaded", NotReady = "not_ready",
        UpstreamLogin = "upstream_login", RetryLater = "retry_later",
        Unreachable = "unreachable", Timeout = "timeout", BadResponse = "bad_response",
        UpstreamDown = "upstream_down", Loop = "loop",
        UsersNode = "users_node", Store = "store", Internal = "internal",
    }
);
label!(
    /// The outcome of a login of the gateway at the upstream.
    LoginOutcome as "outcome" {
        Ok = "ok", WrongPassword = "wrong_password", PasswordChange = "password_change",
        Unreachable = "unreachable", Timeout = "timeout", Unusable = "unusable",
        Refused = "refused", Superseded = "superseded", SecretUnreadable = "secret_unreadable",
        NotAccepted = "not_accepted",
    }
);
label!(
    /// The outcome of a client's login at the gateway.
    ClientLoginOutcome as "outcome" {
        Ok = "ok", Refused = "refused", PasswordChange = "password_change",
        Limited = "limited", Failed = "failed",
    }
);
label!(
    /// Why a TLS handshake or a client connection ended early.
    ConnectionEnd as "reason" {
        Handshake = "handshake", HandshakeTimeout = "handshake_timeout",
        HeaderTimeout = "header_timeout", Idle = "idle", Protocol = "protocol",
        Aborted = "aborted", Accept = "accept", PeerShare = "peer_share",
    }
);
label!(
    /// What happened to a request that exceeded a rate limit.
    LimitOutcome as "outcome" { Refused = "refused", Waited = "waited", DryRun = "dry_run" }
);
label!(
    /// Why a call to the shared store failed.
    StoreFailure as "reason" {
        Down = "down", Timeout = "timeout", Broken = "broken", Full = "full",
        Refused = "refused", Foreign = "foreign",
    }
);
label!(
    /// The result of looking up a token in the shared store.
    StoreLookupResult as "result" { Found = "found", NotFound = "not_found", Failed = "failed" }
);
label!(
    /// The kind of credential that a request to the upstream carried.
    SentCredential as "credential" { Session = "session", ApiKey = "api_key", Client = "client", Nothing = "none" }
);
label!(
    /// An event in the life of a client token.
    TokenEvent as "event" {
        Minted = "minted", Learned = "learned", Revoked = "revoked", Expired = "expired",
        Displaced = "displaced", Refused = "refused",
    }
);
label!(
    /// Why the gateway could not read the response to a relayed login.
    UnreadableLogin as "reason" {
        ContentEncoding = "content_encoding", TooLong = "too_long", NotJson = "not_json", NoToken = "no_token",
        Expired = "expired",
    }
);
label!(
    /// Which cap on the number of tokens.
    TokenCap as "cap" { User = "user", All = "all" }
);
label!(
    /// How a connection to the upstream was obtained, or why it was not.
    ConnectResult as "outcome" { New = "new", Reused = "reused", Failed = "failed", Timeout = "timeout" }
);
label!(
    /// The outcome of a probe request of the gateway to the upstream.
    ProbeOutcome as "outcome" { Succeeded = "succeeded", Failed = "failed" }
);
label!(
    /// Why a request was sent to the upstream a second time.
    RetryReason as "reason" {
        Refused = "refused_lease", DeadConnection = "dead_connection", NotProcessed = "not_processed",
        OtherEndpoint = "other_endpoint",
    }
);
label!(
    /// The outcome of a reload of the configuration or of a certificate.
    ReloadResult as "outcome" { Applied = "applied", Refused = "refused", Unchanged = "unchanged" }
);

label!(
    /// The outcome of a change submitted to the store.
    StoreOutcome as "outcome" { Committed = "committed", Refused = "refused", Busy = "busy" }
);

/// The counters of one family, one per label value, found by index instead of by hashing.
#[derive(Debug)]
pub struct CounterFamily<L> {
    counters: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: LabelSet> CounterFamily<L> {
    pub(super) fn new(registry: &Registry, name: &str, help: &str) -> Self {
        let family = family(registry, name, help, &[L::NAME]);
        Self {
            counters: L::ALL
                .iter()
                .map(|label| family.with_label_values(&[label.text()]))
                .collect(),
            label: PhantomData,
        }
    }

    /// The counters of one upstream; `family` has the labels `upstream` and `L::NAME`.
    pub(super) fn of_upstream(family: &IntCounterVec, upstream: &str) -> Self {
        let labels = L::ALL.iter();
        Self {
            counters: labels
                .map(|label| family.with_label_values(&[upstream, label.text()]))
                .collect(),
            label: PhantomData,
        }
    }

    pub fn add(&self, label: L) {
        self.counters[label.index()].inc();
    }

    pub fn add_many(&self, label: L, count: u64) {
        self.counters[label.index()].inc_by(count);
    }

    pub fn value(&self, label: L) -> u64 {
        self.counters[label.index()].get()
    }
}

/// Increments a gauge for as long as the guard lives.
#[derive(Debug)]
pub struct GaugeGuard(IntGauge);

impl GaugeGuard {
    pub fn enter(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
