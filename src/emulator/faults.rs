//! The switches for all faults, as one value. Tests in the same process set them by method, the
//! control port by JSON.

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// How a login responds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoginResponse {
    #[default]
    Normal,
    /// A 200 whose JSON is ten megabytes long.
    TenMegabytes,
    /// A 200 with a web page, as from a captive portal or a wrong port.
    Html,
    /// The connection ends halfway through the body.
    CutInMiddle,
    Never,
    EmptyBody,
    /// 401 with code 1024.
    PasswordChangeRequired,
    Status(u16),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpiryForm {
    #[default]
    Normal,
    Null,
    Past,
    Garbage,
    Missing,
    FarFuture,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenForm {
    #[default]
    Normal,
    Missing,
    Empty,
    /// Contains CR LF and a header; it must never be put on a request.
    LineBreak,
}

/// Whose tokens a logout ends; Meta's pages disagree (protocol sheet, section 1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogoutScope {
    #[default]
    Token,
    User,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    #[default]
    Single,
    HighAvailability,
}

/// The status of the Coreapp in the health response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gateway {
    #[default]
    Connected,
    Connecting,
    Disconnected,
    Uninitialized,
    Unregistered,
}

/// The next `times` logins respond with `how`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FailLogins {
    pub times: u32,
    pub how: LoginResponse,
}

/// All switches. Numbers named `respond_...` or `close_...` count down, one per
/// request; logins do not draw on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Switches {
    /// Requests are read and get no response.
    pub hang: bool,
    /// New connections and requests are dropped, as when nothing runs here.
    pub refuse_connections: bool,
    /// 503 and 1011 on everything, login included.
    pub not_ready: bool,
    /// 503 and 1016 on everything that needs the Coreapp.
    pub overload: bool,
    /// 500 and 1014 on everything that needs the Coreapp.
    pub coreapp_down: bool,
    pub respond_401: u32,
    pub respond_429: u32,
    pub respond_503: u32,
    /// The head and half of the body, then the connection ends.
    pub close_mid_body: u32,
    /// The head, then silence.
    pub stall_after_headers: bool,
    /// Bodies are sent in small chunks with pauses.
    pub slow_body: bool,
    /// Responses are chunked and end with a trailer field.
    pub trailers: bool,
    /// Responses repeat the request's `Authorization` in a header and in the body.
    pub echo: bool,
    /// Pause before each response other than a login's.
    pub response_delay_ms: u64,
    /// Pause between the creation of a token and the response with it.
    pub login_takes_ms: u64,
    pub login_response: LoginResponse,
    pub fail_next_logins: FailLogins,
    pub expiry_form: ExpiryForm,
    pub token_form: TokenForm,
    /// A login ends the user's earlier tokens (Turn.io).
    pub single_token: bool,
    pub logout_scope: LogoutScope,
    pub token_lifetime_seconds: u64,
    /// Offset of the clock: applies to `Date`, `expires_after`, `iat`, `exp` and the expiry of tokens.
    pub clock_offset_seconds: i64,
    pub health: Health,
    pub gateway_status: Gateway,
    /// The Webapp's own rate limits.
    pub limits: bool,
    /// Bytes of one upload; 0: no limit.
    pub media_limit: u64,
}

impl Default for Switches {
    fn default() -> Self {
        Self {
            hang: false,
            refuse_connections: false,
            not_ready: false,
            overload: false,
            coreapp_down: false,
            respond_401: 0,
            respond_429: 0,
            respond_503: 0,
            close_mid_body: 0,
            stall_after_headers: false,
            slow_body: false,
            trailers: false,
            echo: false,
            response_delay_ms: 0,
            login_takes_ms: 0,
            login_response: LoginResponse::Normal,
            fail_next_logins: FailLogins::default(),
            expiry_form: ExpiryForm::Normal,
            token_form: TokenForm::Normal,
            single_token: false,
            logout_scope: LogoutScope::Token,
            token_lifetime_seconds: 604_800,
            clock_offset_seconds: 0,
            health: Health::Single,
            gateway_status: Gateway::Connected,
            limits: true,
            media_limit: 100_000_000,
        }
    }
}

/// Why switches were not set.
#[derive(Debug, thiserror::Error)]
#[error("these switches cannot be set")]
pub(super) struct InvalidSwitches(#[source] serde_json::Error);

/// The switches in force.
#[derive(Debug)]
pub(super) struct FaultSwitches {
    now: Mutex<Switches>,
    start: Switches,
}

impl FaultSwitches {
    pub(super) fn new(start: Switches) -> Self {
        Self {
            now: Mutex::new(start),
            start,
        }
    }

    pub(super) fn now(&self) -> Switches {
        *self.now.lock()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Switches)) {
        change(&mut self.now.lock());
    }

    /// As they were at the start.
    pub(super) fn reset(&self) -> Switches {
        self.change(|now| *now = self.start);
        self.start
    }

    /// Sets the switches named in `changes`, all of them or none.
    pub(super) fn set(&self, changes: Map<String, Value>) -> Result<Switches, InvalidSwitches> {
        let mut now = self.now.lock();
        let mut whole = json!(*now);
        if let Value::Object(members) = &mut whole {
            members.extend(changes);
        }
        *now = serde_json::from_value(whole).map_err(InvalidSwitches)?;
        Ok(*now)
    }

    /// The switches for one request. The countdown that this request decremented is 1 in the result,
    /// the others are 0; at most one is decremented.
    pub(super) fn draw(&self) -> Switches {
        let mut guard = self.now.lock();
        let now = &mut *guard;
        let mut own = *now;
        (own.respond_401, own.respond_429) = (0, 0);
        (own.respond_503, own.close_mid_body) = (0, 0);
        for (left, drawn) in [
            (&mut now.respond_401, &mut own.respond_401),
            (&mut now.respond_429, &mut own.respond_429),
            (&mut now.respond_503, &mut own.respond_503),
            (&mut now.close_mid_body, &mut own.close_mid_body),
        ] {
            if *left > 0 {
                *left -= 1;
                *drawn = 1;
                break;
            }
        }
        own
    }

    /// The switches for one login; `login_response` says how it responds.
    pub(super) fn draw_login(&self) -> Switches {
        let mut now = self.now.lock();
        let mut own = *now;
        if now.fail_next_logins.times > 0 {
            now.fail_next_logins.times -= 1;
            own.login_response = now.fail_next_logins.how;
        }
        own
    }
}
