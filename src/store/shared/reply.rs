//! A script's answer: a word, then numbers and texts.

use redis::Value;

use crate::store::Unavailable;

#[derive(Debug)]
pub(super) struct Reply(pub(super) Vec<Value>);

impl Reply {
    pub(super) fn word(&self) -> &str {
        match self.0.first() {
            Some(Value::BulkString(bytes)) => std::str::from_utf8(bytes).unwrap_or_default(),
            Some(Value::SimpleString(text)) => text,
            _ => "",
        }
    }

    pub(super) fn number(&self, place: usize) -> Result<u64, Unavailable> {
        let number: Option<i64> = self.read(place);
        let number = number.and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| self.odd())
    }

    pub(super) fn signed(&self, place: usize) -> Result<i64, Unavailable> {
        self.read(place).ok_or_else(|| self.odd())
    }

    pub(super) fn text(&self, place: usize) -> Result<String, Unavailable> {
        self.read(place).ok_or_else(|| self.odd())
    }

    pub(super) fn bytes(&self, place: usize) -> Result<Vec<u8>, Unavailable> {
        self.read(place).ok_or_else(|| self.odd())
    }

    /// An answer no script of ours gives; not shown, for it may hold anything.
    pub(super) fn odd(&self) -> Unavailable {
        Unavailable::Failed("the store gave an answer that nobody knows".into())
    }

    fn read<T: redis::FromRedisValue>(&self, place: usize) -> Option<T> {
        redis::from_redis_value_ref(self.0.get(place)?).ok()
    }
}
