//! Faults and counters as named methods, for tests in the same process.

use std::time::Duration;

use super::Emulator;
use super::counts::RequestCounts;
use super::faults::{ExpiryForm, FailLogins, Health, LoginResponse, Switches};
use crate::secret::Secret;

/// One method per switch of the same name and type.
macro_rules! switches {
    ($($name:ident: $kind:ty => $field:ident;)*) => {
        impl Emulator {
            $(pub fn $name(&self, to: $kind) {
                self.change(|switches| switches.$field = to);
            })*
        }
    };
}

switches! {
    hang: bool => hang;
    not_ready: bool => not_ready;
    respond_401: u32 => respond_401;
    respond_429: u32 => respond_429;
    respond_503: u32 => respond_503;
    close_mid_body: u32 => close_mid_body;
    stall_after_headers: bool => stall_after_headers;
    slow_body: bool => slow_body;
    trailers: bool => trailers;
    echo: bool => echo;
    login_response: LoginResponse => login_response;
    expiry_form: ExpiryForm => expiry_form;
    single_token: bool => single_token;
    health: Health => health;
    media_limit: u64 => media_limit;
}

impl Emulator {
    pub fn switches(&self) -> Switches {
        self.webapp.state.faults.now()
    }

    pub fn change(&self, change: impl FnOnce(&mut Switches)) {
        self.webapp.state.faults.change(change);
    }

    /// Resets all switches to those of the start.
    pub fn behave(&self) {
        self.webapp.state.faults.reset();
    }

    pub fn response_delay(&self, pause: Duration) {
        self.change(|switches| switches.response_delay_ms = millis(pause));
    }

    /// The token exists before the pause; the response is sent after it.
    pub fn login_takes(&self, pause: Duration) {
        self.change(|switches| switches.login_takes_ms = millis(pause));
    }

    pub fn fail_next_logins(&self, times: u32, how: LoginResponse) {
        self.change(|switches| switches.fail_next_logins = FailLogins { times, how });
    }

    /// For tokens minted from now on; whole seconds.
    pub fn token_lifetime(&self, lifetime: Duration) {
        self.change(|switches| switches.token_lifetime_seconds = lifetime.as_secs());
    }

    /// Positive: the emulated clock is ahead.
    pub fn clock_offset(&self, seconds: i64) {
        self.change(|switches| switches.clock_offset_seconds = seconds);
    }

    /// Returns the number of tokens.
    pub fn forget_all_tokens(&self) -> usize {
        self.webapp.state.tokens.forget_all()
    }

    /// Returns the number of tokens.
    pub fn expire_all_tokens(&self) -> usize {
        self.webapp.state.tokens.expire_all()
    }

    /// False: there is no such token.
    pub fn revoke(&self, token: &str) -> bool {
        self.webapp.state.tokens.revoke(token)
    }

    /// All tokens that are stored.
    pub fn live_tokens(&self) -> Vec<Secret> {
        self.webapp.state.tokens.all()
    }

    /// Issues a token as a login of `user` would.
    pub fn mint_token(&self, user: &str) -> Option<Secret> {
        let switches = self.switches();
        let now = crate::clock::unix_seconds() + switches.clock_offset_seconds;
        let lifetime = switches.token_lifetime_seconds;
        self.webapp
            .state
            .tokens
            .mint(user, now, lifetime)
            .map(|minted| minted.token)
    }

    /// Responses with 401 so far, to logins and tokens.
    pub fn refusals_401(&self) -> u64 {
        RequestCounts::read(&self.webapp.state.counts.responses_401)
    }

    /// Responses with 429 so far, scripted or by the rate limits.
    pub fn refusals_429(&self) -> u64 {
        RequestCounts::read(&self.webapp.state.counts.responses_429)
    }

    /// Changes the password of the first user; its tokens stay valid.
    pub fn rotate_password(&self, new: Secret) {
        let directory = &self.webapp.state.directory;
        directory.change_password(directory.first(), new);
    }

    pub fn login_count(&self) -> u64 {
        RequestCounts::read(&self.webapp.state.counts.logins)
    }

    /// Requests whose path begins with `prefix`, such as `/v1/messages`.
    /// Up to 4096 paths are counted separately.
    pub fn request_count(&self, prefix: &str) -> u64 {
        self.webapp.state.counts.with_prefix(prefix)
    }

    pub fn in_flight(&self) -> usize {
        self.webapp.state.counts.in_flight()
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
