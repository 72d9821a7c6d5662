//! Permits of the shared limits: several at a time, so that a gate asks now and then and
//! not for each request.

use std::time::Duration;

use super::SharedStore;
use super::client::script;
use crate::store::StoreUnavailable;

/// What the store gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrantedPermits {
    pub taken: u32,
    /// Until there is another one.
    pub wait: Duration,
}

impl SharedStore {
    /// Takes up to `wanted` permits of a bucket that fills by one every `interval` and
    /// holds `burst`.
    pub async fn take_permits(
        &self,
        bucket: &str,
        (interval, burst): (Duration, u32),
        wanted: u32,
    ) -> Result<GrantedPermits, StoreUnavailable> {
        self.permits(bucket, (interval, burst), i64::from(wanted))
            .await
    }

    /// Gives back permits that were not used.
    pub async fn return_permits(
        &self,
        bucket: &str,
        (interval, burst): (Duration, u32),
        unused: u32,
    ) -> Result<(), StoreUnavailable> {
        let given = self.permits(bucket, (interval, burst), -i64::from(unused));
        given.await.map(drop)
    }

    async fn permits(
        &self,
        bucket: &str,
        (interval, burst): (Duration, u32),
        wanted: i64,
    ) -> Result<GrantedPermits, StoreUnavailable> {
        let Some(up) = self.up.load_full() else {
            return Err(StoreUnavailable::Failed(std::sync::Arc::clone(
                &self.down.load().why,
            )));
        };
        let micros = interval.as_secs_f64() * 1e6;
        let mut invocation = script::PERMITS.key(self.names.bucket(bucket));
        invocation
            .arg(format!("{micros:.6}"))
            .arg(format!("{:.6}", micros * f64::from(burst)))
            .arg(wanted);
        let mut connection = up.commands.0.clone();
        let (taken, wait): (i64, u64) = invocation
            .invoke_async(&mut connection)
            .await
            .map_err(|error| self.failed(&error))?;
        Ok(GrantedPermits {
            taken: u32::try_from(taken).unwrap_or(0),
            wait: Duration::from_micros(wait),
        })
    }
}
