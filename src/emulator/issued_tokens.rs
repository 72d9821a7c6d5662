//! The tokens of the emulated Webapp, in the captured form, stored by digest.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::hex;
use crate::secret::Secret;

/// The header's bytes, spaces included, as in every published sample.
const HEADER: &str = r#"{"alg": "HS256", "typ": "JWT"}"#;

/// Most tokens; beyond that expired ones are removed, and if none is, the new one is refused.
const MAX: usize = 500_000;

pub(super) struct IssuedTokens {
    key: [u8; 32],
    tokens: Mutex<HashMap<[u8; 32], IssuedToken>>,
}

struct IssuedToken {
    user: Arc<str>,
    expires: i64,
    token: Secret,
}

/// A token and its time, on the emulated Webapp's clock.
pub(super) struct MintedToken {
    pub token: Secret,
    pub expires: i64,
}

impl IssuedTokens {
    /// With a new key, so that tokens of an earlier start are invalid.
    pub(super) fn new() -> Self {
        Self {
            key: rand::random(),
            tokens: Mutex::default(),
        }
    }

    /// Issues a token for `user`. None: there are too many.
    pub(super) fn mint(&self, user: &str, now: i64, lifetime: u64) -> Option<MintedToken> {
        let expires = now.saturating_add_unsigned(lifetime);
        let token = self.sign(&payload(user, now, expires));
        let mut tokens = self.tokens.lock();
        if tokens.len() >= MAX {
            tokens.retain(|_, tokens| tokens.expires > now);
        }
        if tokens.len() >= MAX {
            return None;
        }
        let user = Arc::from(user);
        let entry = IssuedToken {
            user,
            expires,
            token: token.clone(),
        };
        tokens.insert(digest(token.expose()), entry);
        Some(MintedToken { token, expires })
    }

    fn sign(&self, payload: &str) -> Secret {
        let head = URL_SAFE_NO_PAD.encode(HEADER);
        let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(payload));
        let mut mac =
            Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes a key of any length");
        mac.update(signed.as_bytes());
        let signature = URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes());
        Secret::new(format!("{signed}.{signature}"))
    }

    /// The user of a token. The digest is of the whole text, so a known token also has the right
    /// signature. An expired one is removed.
    pub(super) fn find(&self, token: &str, now: i64) -> Option<Arc<str>> {
        let digest = digest(token);
        let mut tokens = self.tokens.lock();
        let found = tokens.get(&digest)?;
        if found.expires > now {
            return Some(Arc::clone(&found.user));
        }
        tokens.remove(&digest);
        None
    }

    /// True if the token existed.
    pub(super) fn revoke(&self, token: &str) -> bool {
        self.tokens.lock().remove(&digest(token)).is_some()
    }

    /// Returns the number of tokens revoked.
    pub(super) fn revoke_user(&self, user: &str) -> usize {
        let mut tokens = self.tokens.lock();
        let before = tokens.len();
        tokens.retain(|_, tokens| &*tokens.user != user);
        before - tokens.len()
    }

    pub(super) fn forget_all(&self) -> usize {
        std::mem::take(&mut *self.tokens.lock()).len()
    }

    pub(super) fn expire_all(&self) -> usize {
        let mut tokens = self.tokens.lock();
        for tokens in tokens.values_mut() {
            tokens.expires = i64::MIN;
        }
        tokens.len()
    }

    /// All stored tokens, for tests that search for leaks.
    pub(super) fn all(&self) -> Vec<Secret> {
        self.tokens
            .lock()
            .values()
            .map(|tokens| tokens.token.clone())
            .collect()
    }

    pub(super) fn count(&self) -> usize {
        self.tokens.lock().len()
    }
}

/// Members in the captured order; a map type would have its own.
fn payload(user: &str, now: i64, expires: i64) -> String {
    let user = serde_json::Value::from(user);
    let rand = hex(&rand::random::<[u8; 16]>());
    format!(r#"{{"user":{user},"iat":{now},"exp":{expires},"wa:rand":"{rand}"}}"#)
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_captured_shape() {
        let tokens = IssuedTokens::new();
        let minted = tokens.mint("admin", 1_626_598_248, 604_800).unwrap();
        assert_eq!(minted.expires, 1_627_203_048);
        let text = minted.token.expose();
        assert_eq!(text.len(), 212);
        let parts: Vec<_> = text.split('.').collect();
        assert_eq!(URL_SAFE_NO_PAD.decode(parts[0]).unwrap(), HEADER.as_bytes());
        let payload = String::from_utf8(URL_SAFE_NO_PAD.decode(parts[1]).unwrap()).unwrap();
        let start = r#"{"user":"admin","iat":1626598248,"exp":1627203048,"wa:rand":""#;
        assert!(payload.starts_with(start), "{payload}");
        let mut mac = Hmac::<Sha256>::new_from_slice(&tokens.key).unwrap();
        mac.update(format!("{}.{}", parts[0], parts[1]).as_bytes());
        let signature = URL_SAFE_NO_PAD.decode(parts[2]).unwrap();
        assert!(mac.verify_slice(&signature).is_ok());
    }

    #[test]
    fn a_token_expires_and_is_then_removed() {
        let tokens = IssuedTokens::new();
        let minted = tokens.mint("admin", 1000, 10).unwrap();
        let text = minted.token.expose();
        assert!(tokens.find(text, 1009).is_some());
        assert!(tokens.find(text, 1010).is_none());
        assert_eq!(tokens.count(), 0);
    }

    #[test]
    fn revoking_a_user_leaves_the_others() {
        let tokens = IssuedTokens::new();
        let admin = tokens.mint("admin", 0, 10).unwrap();
        let other = tokens.mint("other", 0, 10).unwrap();
        tokens.mint("admin", 0, 10).unwrap();
        assert_eq!(tokens.revoke_user("admin"), 2);
        assert!(tokens.find(admin.token.expose(), 1).is_none());
        assert!(tokens.find(other.token.expose(), 1).is_some());
        assert!(tokens.revoke(other.token.expose()));
        assert!(!tokens.revoke(other.token.expose()));
    }
}
