//! A script's reply: a word, then numbers and texts.

use std::sync::Arc;

use redis::Value;

use super::reconnect::ReconnectSignal;
use crate::store::StoreUnavailable;

#[derive(Debug)]
pub(in crate::store::shared) struct ScriptReply {
    values: Vec<Value>,
    reconnect: Arc<ReconnectSignal>,
}

impl ScriptReply {
    pub(in crate::store::shared) fn new(
        values: Vec<Value>,
        reconnect: &Arc<ReconnectSignal>,
    ) -> Self {
        Self {
            values,
            reconnect: Arc::clone(reconnect),
        }
    }

    pub(in crate::store::shared) fn word(&self) -> &str {
        match self.values.first() {
            Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
            Some(Value::SimpleString(text)) => text,
            _ => "",
        }
    }

    pub(in crate::store::shared) fn number(&self, index: usize) -> Result<u64, StoreUnavailable> {
        let number: Option<i64> = self.read(index);
        let number = number.and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| self.malformed())
    }

    /// The texts from this index on.
    pub(in crate::store::shared) fn rest(
        &self,
        index: usize,
    ) -> Result<Vec<Vec<u8>>, StoreUnavailable> {
        (index..self.values.len())
            .map(|index| self.bytes(index))
            .collect()
    }

    pub(in crate::store::shared) fn signed(&self, index: usize) -> Result<i64, StoreUnavailable> {
        self.read(index).ok_or_else(|| self.malformed())
    }

    pub(in crate::store::shared) fn text(&self, index: usize) -> Result<String, StoreUnavailable> {
        self.read(index).ok_or_else(|| self.malformed())
    }

    pub(in crate::store::shared) fn bytes(
        &self,
        index: usize,
    ) -> Result<Vec<u8>, StoreUnavailable> {
        self.read(index).ok_or_else(|| self.malformed())
    }

    /// The error for a reply that no script of ours gives. The reply is not shown, because it may
    /// contain anything, and the connection is given up.
    pub(in crate::store::shared) fn malformed(&self) -> StoreUnavailable {
        let reason: Arc<str> = "the store sent a reply of an unknown form".into();
        self.reconnect.request(&reason);
        StoreUnavailable::Failed(reason)
    }

    fn read<T: redis::FromRedisValue>(&self, index: usize) -> Option<T> {
        redis::from_redis_value_ref(self.values.get(index)?).ok()
    }
}
