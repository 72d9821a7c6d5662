//! A script's answer: a word, then numbers and texts.

use std::sync::Arc;

use redis::Value;

use super::reconnect::ReconnectSignal;
use crate::store::StoreUnavailable;

#[derive(Debug)]
pub(in crate::store::shared) struct ScriptReply {
    values: Vec<Value>,
    relink: Arc<ReconnectSignal>,
}

impl ScriptReply {
    pub(in crate::store::shared) fn new(values: Vec<Value>, relink: &Arc<ReconnectSignal>) -> Self {
        Self {
            values,
            relink: Arc::clone(relink),
        }
    }

    pub(in crate::store::shared) fn word(&self) -> &str {
        match self.values.first() {
            Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
            Some(Value::SimpleString(text)) => text,
            _ => "",
        }
    }

    pub(in crate::store::shared) fn number(&self, place: usize) -> Result<u64, StoreUnavailable> {
        let number: Option<i64> = self.read(place);
        let number = number.and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| self.odd())
    }

    /// Texts from this place on.
    pub(in crate::store::shared) fn rest(
        &self,
        place: usize,
    ) -> Result<Vec<Vec<u8>>, StoreUnavailable> {
        (place..self.values.len())
            .map(|place| self.bytes(place))
            .collect()
    }

    pub(in crate::store::shared) fn signed(&self, place: usize) -> Result<i64, StoreUnavailable> {
        self.read(place).ok_or_else(|| self.odd())
    }

    pub(in crate::store::shared) fn text(&self, place: usize) -> Result<String, StoreUnavailable> {
        self.read(place).ok_or_else(|| self.odd())
    }

    pub(in crate::store::shared) fn bytes(
        &self,
        place: usize,
    ) -> Result<Vec<u8>, StoreUnavailable> {
        self.read(place).ok_or_else(|| self.odd())
    }

    /// An answer no script of ours gives; not shown, for it may hold anything. What else
    /// comes on this connection is not to be trusted either.
    pub(in crate::store::shared) fn odd(&self) -> StoreUnavailable {
        let why: Arc<str> = "the store gave an answer that nobody knows".into();
        self.relink.ask(&why);
        StoreUnavailable::Failed(why)
    }

    fn read<T: redis::FromRedisValue>(&self, place: usize) -> Option<T> {
        redis::from_redis_value_ref(self.values.get(place)?).ok()
    }
}
