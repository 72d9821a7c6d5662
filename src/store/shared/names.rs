//! Names of the keys. All of one gate carry one hash tag, so a cluster keeps them in one
//! slot, where a script can change them together.

#[derive(Debug)]
pub(super) struct RedisKeys {
    prefix: String,
    pub(super) meta: String,
    pub(super) changes: String,
    pub(super) ends: String,
    pub(super) users: String,
    pub(super) keys: String,
    /// How many tokens each user was given.
    pub(super) issued: String,
}

impl RedisKeys {
    pub(super) fn new(prefix: &str) -> Self {
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

    pub(super) fn token(&self, digest: &[u8; 32]) -> Vec<u8> {
        let mut name = format!("{}t:", self.prefix).into_bytes();
        name.extend_from_slice(digest);
        name
    }

    /// All tokens' names, as SCAN wants it.
    pub(super) fn tokens(&self) -> String {
        format!("{}t:*", self.prefix)
    }

    pub(super) fn holder(&self, user: &str) -> String {
        format!("{}h:{user}", self.prefix)
    }

    pub(super) fn bucket(&self, limit: &str) -> String {
        format!("{}l:{limit}", self.prefix)
    }

    pub(super) fn lease(&self, upstream: &str) -> String {
        format!("{}lease:{upstream}", self.prefix)
    }

    pub(super) fn lock(&self, upstream: &str) -> String {
        format!("{}lock:{upstream}", self.prefix)
    }

    pub(super) fn logins(&self, upstream: &str) -> String {
        format!("{}logins:{upstream}", self.prefix)
    }

    pub(super) fn gates(&self) -> String {
        format!("{}gates", self.prefix)
    }
}
