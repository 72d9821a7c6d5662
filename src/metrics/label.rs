//! Labels with a fixed set of values, and counters found by them without hashing.

use std::marker::PhantomData;

use prometheus::{IntCounter, IntGauge, Registry};

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
    /// Whose doing an answer is.
    Blame as "blame" { None = "none", Client = "client", Gateway = "gateway", Upstream = "upstream" }
);
label!(
    /// Why the gate itself refused a request.
    Reason as "reason" {
        BadRequest = "bad_request", NoRoute = "no_route", Method = "method",
        Unauthenticated = "unauthenticated", Forbidden = "forbidden", TooMany = "too_many",
        TooLarge = "too_large", Overloaded = "overloaded", NotReady = "not_ready",
        UpstreamLogin = "upstream_login", RetryLater = "retry_later",
        Unreachable = "unreachable", Timeout = "timeout", BadAnswer = "bad_answer",
        UpstreamDown = "upstream_down", Loop = "loop",
        UsersNode = "users_node", Store = "store", Internal = "internal",
    }
);
label!(
    /// How one of our logins at the upstream ended.
    LoginOutcome as "outcome" {
        Ok = "ok", WrongPassword = "wrong_password", PasswordChange = "password_change",
        Unreachable = "unreachable", Timeout = "timeout", Unusable = "unusable",
        Refused = "refused", Superseded = "superseded", Secret = "secret",
        NotAccepted = "not_accepted",
    }
);
label!(
    /// How a client's login at the gate ended.
    ClientLogin as "outcome" {
        Ok = "ok", Refused = "refused", PasswordChange = "password_change",
        Limited = "limited", Failed = "failed",
    }
);
label!(
    /// Why a TLS handshake or a connection ended early.
    ConnectionEnd as "reason" {
        Handshake = "handshake", HandshakeTimeout = "handshake_timeout",
        HeaderTimeout = "header_timeout", Idle = "idle", Protocol = "protocol",
        Aborted = "aborted", Accept = "accept", PeerShare = "peer_share",
    }
);
label!(
    /// What a limit did to a request that found its bucket empty.
    LimitOutcome as "outcome" { Refused = "refused", Waited = "waited", DryRun = "dry_run" }
);
label!(
    /// Why the shared store did not do what it was asked.
    StoreFailure as "reason" {
        Down = "down", Timeout = "timeout", Broken = "broken", Full = "full",
        Refused = "refused", Foreign = "foreign",
    }
);
label!(
    /// What the shared store said about a token that this gate did not know.
    StoreAnswer as "answer" { Known = "known", Unknown = "unknown", None = "none" }
);
label!(
    /// Which credential went up.
    Injected as "credential" { Session = "session", ApiKey = "api_key", Client = "client", Nothing = "none" }
);
label!(
    /// What became of a token.
    TokenEvent as "event" {
        Minted = "minted", Learned = "learned", Revoked = "revoked", Expired = "expired",
        Displaced = "displaced", Refused = "refused",
    }
);
label!(
    /// Why the gate could not read the answer to a relayed login.
    UnreadLogin as "why" {
        Coded = "coded", TooLong = "too_long", NotJson = "not_json", NoToken = "no_token",
        Ended = "ended",
    }
);
label!(
    /// Whose cap on tokens.
    TokenCap as "cap" { User = "user", All = "all" }
);
label!(
    /// How a connection to the upstream was had, or why not.
    Connect as "outcome" { New = "new", Reused = "reused", Failed = "failed", Timeout = "timeout" }
);
label!(
    /// How a question of the gate's own to the upstream ended.
    ProbeOutcome as "outcome" { Answered = "answered", Failed = "failed" }
);
label!(
    /// Why a request was sent to the upstream a second time.
    Repeat as "reason" { Refused = "refused_lease", DeadConnection = "dead_connection" }
);
label!(
    /// How a reload or a certificate reload ended.
    Reload as "outcome" { Applied = "applied", Refused = "refused", Unchanged = "unchanged" }
);

label!(
    /// What became of a change that was to outlive a restart.
    StoreOutcome as "outcome" { Committed = "committed", Refused = "refused", Busy = "busy" }
);

/// Counters of one family, one per label value, found by index: no hashing.
#[derive(Debug)]
pub struct CounterFamily<L> {
    each: Vec<IntCounter>,
    label: PhantomData<L>,
}

impl<L: LabelSet> CounterFamily<L> {
    pub(super) fn new(registry: &Registry, name: &str, help: &str) -> Self {
        let family = family(registry, name, help, &[L::NAME]);
        Self {
            each: L::ALL
                .iter()
                .map(|label| family.with_label_values(&[label.text()]))
                .collect(),
            label: PhantomData,
        }
    }

    pub fn add(&self, label: L) {
        self.each[label.index()].inc();
    }

    pub fn add_many(&self, label: L, count: u64) {
        self.each[label.index()].inc_by(count);
    }

    pub fn value(&self, label: L) -> u64 {
        self.each[label.index()].get()
    }
}

/// Counts one thing as long as it lives.
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
