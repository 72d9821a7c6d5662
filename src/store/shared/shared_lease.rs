//! One login at an upstream for all gateways: which of them logs in, and the lease that results.

use std::time::Duration;

use super::client::script;
use super::tokens::millis;
use super::{ScriptCall, SharedStore};
use crate::store::{SealedBytes, StoreUnavailable};

/// How long the lock lasts if its gateway dies; it is extended while a login runs.
const LOCK_LIFE: Duration = Duration::from_secs(10);

/// The lease in the store.
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
    /// It may: no other gateway logs in until the lease is published or the lock released.
    Ours(LoginLock),
    /// Another gateway has logged in already: read its lease.
    Newer,
    /// Another gateway is logging in; its lock lasts this long if it dies.
    Busy(Duration),
    /// The rate limit allows no login before this time has passed.
    Wait(Duration),
}

/// The lock of a running login; while it holds, no other gateway logs in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "publish the lease or release the lock"]
pub struct LoginLock {
    owner: String,
    fence: u64,
    refused: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishOutcome {
    /// All gateways use it from here on; its generation.
    Current(u64),
    /// The lock was lost, or another login has begun since: the lease must not be used.
    Lost,
    /// The upstream refused a lease while the login ran, so the new token may be dead already.
    Superseded,
}

impl SharedStore {
    pub async fn lease(&self, upstream: &str) -> Result<Option<LeaseAt>, StoreUnavailable> {
        let call = ScriptCall::default().key(self.keys.lease(upstream));
        let reply = self.run(&script::LEASE, call).await?;
        if reply.word() != "ok" {
            return Err(reply.malformed());
        }
        let sealed = reply.bytes(4)?;
        Ok((!sealed.is_empty()).then_some(LeaseAt {
            generation: reply.number(1)?,
            refused: reply.number(2)?,
            left: Duration::from_millis(reply.number(3)?),
            sealed: SealedBytes(sealed),
        }))
    }

    /// Asks for the lock to log in. `known` is the newest generation that this gateway has seen.
    pub async fn login_turn(
        &self,
        upstream: &str,
        known: u64,
        limit: LoginRateLimit,
    ) -> Result<LoginTurn, StoreUnavailable> {
        let owner = format!("{}{:016x}", self.writer, rand::random::<u64>());
        let call = self
            .lease_call(upstream)
            .arg(owner.as_str())
            .number(millis(LOCK_LIFE))
            .number(limit.min_interval.as_millis())
            .number(limit.per_hour.clamp(1, 1000))
            .number(known);
        let reply = self.run(&script::LOGIN, call).await?;
        match reply.word() {
            "go" => Ok(LoginTurn::Ours(LoginLock {
                owner,
                fence: reply.number(1)?,
                refused: reply.number(2)?,
            })),
            "newer" => Ok(LoginTurn::Newer),
            "busy" => Ok(LoginTurn::Busy(Duration::from_millis(
                reply.signed(1)?.max(1).unsigned_abs(),
            ))),
            "wait" => Ok(LoginTurn::Wait(Duration::from_millis(reply.number(1)?))),
            _ => Err(reply.malformed()),
        }
    }

    /// Extends the lock repeatedly; returns when it is lost. To be run beside a login.
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

    /// Releases the lock without a lease. `unsent`: no login request reached the upstream.
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
            .arg(login.owner.as_str())
            .number(life);
        Ok(self.run(&script::LOCK, call).await?.word() == "ok")
    }

    /// Publishes the token of a login as the lease of all gateways.
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
            .arg(login.owner.as_str())
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
            _ => Err(reply.malformed()),
        }
    }

    /// The upstream refused this generation; returns whether the store learns that only now.
    pub async fn refuse_lease(
        &self,
        upstream: &str,
        generation: u64,
    ) -> Result<bool, StoreUnavailable> {
        let call = ScriptCall::default()
            .key(self.keys.lease(upstream))
            .arg(upstream)
            .number(generation);
        Ok(self.run(&script::REFUSE, call).await?.word() == "ok")
    }

    fn lease_call(&self, upstream: &str) -> ScriptCall {
        ScriptCall::default()
            .key(self.keys.lease(upstream))
            .key(self.keys.lock(upstream))
            .key(self.keys.logins(upstream))
    }
}
