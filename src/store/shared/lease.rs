//! One login for all gates: who may log in, and what came of it.

use std::time::Duration;

use super::client::script;
use super::tokens::millis;
use super::{ScriptCall, SharedStore};
use crate::store::{SealedBytes, StoreUnavailable};

/// How long the lock lasts if its holder dies; extended while a login runs.
const LOCK_LIFE: Duration = Duration::from_secs(10);

/// The lease as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAt {
    pub generation: u64,
    /// Highest generation that the upstream has refused.
    pub refused: u64,
    pub left: Duration,
    pub sealed: SealedBytes,
}

/// How often the gateways together may log in at one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRateLimit {
    pub min_interval: Duration,
    pub per_hour: u32,
}

/// Whether this gateway may log in now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginTurn {
    /// Ours: nobody else logs in until this is published or let go.
    Ours(LoginLock),
    /// Somebody has logged in already: read the lease.
    Newer,
    /// Another gate is at it; the lock lasts this long if it dies.
    Busy(Duration),
    /// No login is allowed before.
    Wait(Duration),
}

/// A login under way, here and nowhere else while its lock holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "publish it or let it go"]
pub struct LoginLock {
    holder: String,
    fence: u64,
    refused: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// In use by all from here on.
    Current(u64),
    /// The lock was lost, or another login has been begun since: not to be used.
    Lost,
    /// A refusal came while the login ran: the token may be dead already.
    Superseded,
}

impl SharedStore {
    pub async fn lease(&self, upstream: &str) -> Result<Option<LeaseAt>, StoreUnavailable> {
        let call = ScriptCall::default().key(self.names.lease(upstream));
        let reply = self.run(&script::LEASE, call).await?;
        if reply.word() != "ok" {
            return Err(reply.odd());
        }
        let sealed = reply.bytes(4)?;
        Ok((!sealed.is_empty()).then_some(LeaseAt {
            generation: reply.number(1)?,
            refused: reply.number(2)?,
            left: Duration::from_millis(reply.number(3)?),
            sealed: SealedBytes(sealed),
        }))
    }

    /// Asks for the turn to log in. `known` is the newest generation seen here.
    pub async fn login_turn(
        &self,
        upstream: &str,
        known: u64,
        limit: LoginRateLimit,
    ) -> Result<LoginTurn, StoreUnavailable> {
        let holder = format!("{}{:016x}", self.writer, rand::random::<u64>());
        let call = self
            .lease_call(upstream)
            .arg(holder.as_str())
            .number(millis(LOCK_LIFE))
            .number(limit.min_interval.as_millis())
            .number(limit.per_hour.clamp(1, 1000))
            .number(known);
        let reply = self.run(&script::LOGIN, call).await?;
        match reply.word() {
            "go" => Ok(LoginTurn::Ours(LoginLock {
                holder,
                fence: reply.number(1)?,
                refused: reply.number(2)?,
            })),
            "newer" => Ok(LoginTurn::Newer),
            "busy" => Ok(LoginTurn::Busy(Duration::from_millis(
                reply.signed(1)?.max(1).unsigned_abs(),
            ))),
            "wait" => Ok(LoginTurn::Wait(Duration::from_millis(reply.number(1)?))),
            _ => Err(reply.odd()),
        }
    }

    /// Extends the lock again and again; returns when it is lost. For beside a login.
    pub async fn hold(&self, upstream: &str, login: &LoginLock) {
        loop {
            tokio::time::sleep(LOCK_LIFE / 4).await;
            if matches!(
                self.lock(upstream, login, millis(LOCK_LIFE).cast_signed())
                    .await,
                Ok(false)
            ) {
                return;
            }
        }
    }

    /// Lets the lock go without a lease. `unsent`: the upstream was never asked.
    pub async fn release(
        &self,
        upstream: &str,
        login: &LoginLock,
        unsent: bool,
    ) -> Result<(), StoreUnavailable> {
        let life = if unsent { -1 } else { 0 };
        self.lock(upstream, login, life).await.map(drop)
    }

    async fn lock(
        &self,
        upstream: &str,
        login: &LoginLock,
        life: i64,
    ) -> Result<bool, StoreUnavailable> {
        let call = self
            .lease_call(upstream)
            .arg(login.holder.as_str())
            .number(life);
        Ok(self.run(&script::LOCK, call).await?.word() == "ok")
    }

    /// Makes what the login brought the lease of all gates.
    pub async fn publish(
        &self,
        upstream: &str,
        login: &LoginLock,
        single_active: bool,
        left: Duration,
        sealed: &SealedBytes,
    ) -> Result<PublishOutcome, StoreUnavailable> {
        let call = self
            .lease_call(upstream)
            .arg(login.holder.as_str())
            .number(login.fence)
            .number(login.refused)
            .number(u8::from(single_active))
            .arg(upstream)
            .number(millis(left))
            .arg(sealed.0.as_slice());
        let reply = self.run(&script::PUBLISH, call).await?;
        match reply.word() {
            "ok" => Ok(PublishOutcome::Current(reply.number(1)?)),
            "lost" => Ok(PublishOutcome::Lost),
            "superseded" => Ok(PublishOutcome::Superseded),
            _ => Err(reply.odd()),
        }
    }

    /// The upstream refused this generation; whether that is news.
    pub async fn refuse_lease(
        &self,
        upstream: &str,
        generation: u64,
    ) -> Result<bool, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.names.lease(upstream))
            .arg(upstream)
            .number(generation);
        Ok(self.run(&script::REFUSE, call).await?.word() == "ok")
    }

    fn lease_call(&self, upstream: &str) -> ScriptCall {
        ScriptCall::default()
            .key(self.names.lease(upstream))
            .key(self.names.lock(upstream))
            .key(self.names.logins(upstream))
    }
}
