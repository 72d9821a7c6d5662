//! Names of the Redis keys. All keys of one prefix have one hash tag, so a cluster keeps them in
//! one slot, where a script can change them together.

#[derive(Debug)]
pub(in crate::store::shared) struct RedisKeys {
    prefix: String,
    pub(in crate::store::shared) meta: String,
    pub(in crate::store::shared) changes: String,
    pub(in crate::store::shared) ends: String,
    pub(in crate::store::shared) users: String,
    pub(in crate::store::shared) keys: String,
    /// Hash: how many tokens each user was given.
    pub(in crate::store::shared) issued: String,
}

impl RedisKeys {
    pub(in crate::store::shared) fn new(prefix: &str) -> Self {
        let prefix = format!("{{{prefix}}}:");
        let name = |what: &str| format!("{prefix}{what}");
        Self {
            meta: name("meta"),
            changes: name("changes"),
            ends: name("ends"),
            users: name("users"),
            keys: name("keys"),
            issued: name("issued"),
            prefix,
        }
    }

    pub(in crate::store::shared) fn token(&self, digest: &[u8; 32]) -> Vec<u8> {
        let mut name = format!("{}t:", self.prefix).into_bytes();
        name.extend_from_slice(digest);
        name
    }

    /// The pattern of all tokens' keys, for SCAN.
    pub(in crate::store::shared) fn tokens(&self) -> String {
        format!("{}t:*", self.prefix)
    }

    pub(in crate::store::shared) fn token_user(&self, user: &str) -> String {
        format!("{}h:{user}", self.prefix)
    }

    pub(in crate::store::shared) fn bucket(&self, limit: &str) -> String {
        format!("{}l:{limit}", self.prefix)
    }

    pub(in crate::store::shared) fn lease(&self, upstream: &str) -> String {
        format!("{}lease:{upstream}", self.prefix)
    }

    pub(in crate::store::shared) fn lock(&self, upstream: &str) -> String {
        format!("{}lock:{upstream}", self.prefix)
    }

    pub(in crate::store::shared) fn logins(&self, upstream: &str) -> String {
        format!("{}logins:{upstream}", self.prefix)
    }

    pub(in crate::store::shared) fn gates(&self) -> String {
        format!("{}gates", self.prefix)
    }
}
