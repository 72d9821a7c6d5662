//! Permits of the shared rate limits. A gateway takes several at a time, so that most
//! requests need no call to the store.

use std::time::Duration;

use super::SharedStore;
use super::client::script;
use crate::store::StoreUnavailable;

/// The rate of a bucket: one permit more every `interval`, at most `burst` of them saved up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PermitRate {
    pub interval: Duration,
    pub burst: u32,
}

/// What the store granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedPermits {
    pub taken: u32,
    /// How long until the bucket has another permit.
    pub wait: Duration,
}

impl SharedStore {
    /// Takes up to `wanted` permits from a bucket.
    pub async fn take_permits(
        &self,
        bucket: &str,
        rate: PermitRate,
        wanted: u32,
    ) -> Result<GrantedPermits, StoreUnavailable> {
        self.permits(bucket, rate, i64::from(wanted)).await
    }

    /// Returns permits that were not used.
    pub async fn return_permits(
        &self,
        bucket: &str,
        rate: PermitRate,
        unused: u32,
    ) -> Result<(), StoreUnavailable> {
        let returned = self.permits(bucket, rate, -i64::from(unused));
        returned.await.map(drop)
    }

    async fn permits(
        &self,
        bucket: &str,
        rate: PermitRate,
        wanted: i64,
    ) -> Result<GrantedPermits, StoreUnavailable> {
        let Some(up) = self.up.load_full() else {
            return Err(StoreUnavailable::Failed(std::sync::Arc::clone(
                &self.down.load().reason,
            )));
        };
        let micros = rate.interval.as_secs_f64() * 1e6;
        let mut invocation = script::PERMITS.key(self.keys.bucket(bucket));
        invocation
            .arg(format!("{micros:.6}"))
            .arg(format!("{:.6}", micros * f64::from(rate.burst)))
            .arg(wanted);
        let mut connection = up.commands.0.clone();
        let (taken, wait): (i64, u64) = invocation
            .invoke_async(&mut connection)
            .await
            .map_err(|error| self.record_failure(&error))?;
        Ok(GrantedPermits {
            taken: u32::try_from(taken).unwrap_or(0),
            wait: Duration::from_micros(wait),
        })
    }
}
