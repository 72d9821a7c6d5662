//! Secrets at rest: sealed with a key that only the operator has, and bound to a context (the
//! upstream), so that a sealed secret cannot be used anywhere else.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::SealedBytes;
use crate::secret::{self, Secret, SecretSource};

const NONCE: usize = 12;

/// One key, 256 bits.
pub struct SealKey(RandomizedNonceKey);

/// Why a text is not a key.
#[derive(Debug, thiserror::Error)]
pub enum BadSealKey {
    #[error("the key cannot be read")]
    Unreadable(#[source] secret::Error),
    #[error("a key is 32 bytes in base64, such as `openssl rand -base64 32` makes")]
    Not32Bytes,
}

/// It was sealed with another key, for another context, or was tampered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sealed with another key, or for another upstream")]
pub struct UnsealError;

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[seal key]")
    }
}

impl SealKey {
    pub fn parse(text: &Secret) -> Result<Self, BadSealKey> {
        let bytes = STANDARD.decode(text.expose().trim());
        let bytes = Zeroizing::new(bytes.map_err(|_| BadSealKey::Not32Bytes)?);
        if bytes.len() != 32 {
            return Err(BadSealKey::Not32Bytes);
        }
        // AES-GCM-SIV: a repeated nonce does not break it, should the host's randomness be poor.
        let key = RandomizedNonceKey::new(&AES_256_GCM_SIV, &bytes);
        key.map(Self).map_err(|_| BadSealKey::Not32Bytes)
    }

    pub fn read(source: &SecretSource) -> Result<Self, BadSealKey> {
        Self::parse(&source.read().map_err(BadSealKey::Unreadable)?)
    }

    fn seal(&self, text: &[u8], context: &[u8]) -> Option<SealedBytes> {
        let mut bytes = text.to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(context), &mut bytes);
        let nonce = nonce.ok()?;
        let mut sealed = nonce.as_ref().to_vec();
        sealed.extend_from_slice(&bytes);
        Some(SealedBytes(sealed))
    }

    fn open(&self, sealed: &SealedBytes, context: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, rest) = sealed.0.split_at_checked(NONCE)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut bytes = Zeroizing::new(rest.to_vec());
        let opened = self.0.open_in_place(nonce, Aad::from(context), &mut bytes);
        let length = opened.ok()?.len();
        bytes.truncate(length);
        Some(bytes)
    }
}

/// The key in use and, during a rotation, the one before it.
#[derive(Debug)]
pub struct SealingKeys {
    key: SealKey,
    old: Option<SealKey>,
}

impl SealingKeys {
    pub fn new(key: SealKey, old: Option<SealKey>) -> Self {
        Self { key, old }
    }

    /// None only if the host provides no randomness.
    pub fn seal(&self, secret: &Secret, context: &[u8]) -> Option<SealedBytes> {
        self.key.seal(secret.expose().as_bytes(), context)
    }

    /// The secret, if it was sealed with one of the keys and for this context.
    pub fn open(&self, sealed: &SealedBytes, context: &[u8]) -> Result<Secret, UnsealError> {
        let keys = std::iter::once(&self.key).chain(&self.old);
        let mut opened = keys.filter_map(|key| key.open(sealed, context));
        let bytes = opened.next().ok_or(UnsealError)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| UnsealError)?;
        Ok(Secret::new(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SealKey {
        SealKey::parse(&Secret::new(STANDARD.encode([byte; 32]))).unwrap()
    }

    #[test]
    fn a_secret_opens_with_its_key_and_context_only() {
        let (secret, context) = (Secret::new("canary-lease"), b"main https://webapp gate");
        let seal = SealingKeys::new(key(1), None);
        let sealed = seal.seal(&secret, context).unwrap();
        assert!(!sealed.0.windows(6).any(|part| part == b"canary"));
        assert!(seal.open(&sealed, context).unwrap() == secret);
        assert!(seal.open(&sealed, b"main https://other gate").is_err());
        assert!(
            SealingKeys::new(key(2), None)
                .open(&sealed, context)
                .is_err()
        );
        assert_ne!(
            seal.seal(&secret, context).unwrap(),
            sealed,
            "each sealing has its own nonce"
        );
    }

    #[test]
    fn during_a_rotation_the_old_key_opens_and_the_new_one_seals() {
        let (secret, context) = (Secret::new("lease"), b"here");
        let old = SealingKeys::new(key(1), None)
            .seal(&secret, context)
            .unwrap();
        let both = SealingKeys::new(key(2), Some(key(1)));
        assert!(both.open(&old, context).unwrap() == secret);
        let new = both.seal(&secret, context).unwrap();
        assert!(SealingKeys::new(key(2), None).open(&new, context).unwrap() == secret);
        assert!(SealingKeys::new(key(1), None).open(&new, context).is_err());
    }

    #[test]
    fn a_changed_or_missing_byte_is_detected() {
        let seal = SealingKeys::new(key(1), None);
        let sealed = seal.seal(&Secret::new("lease"), b"here").unwrap();
        for index in 0..sealed.0.len() {
            let mut bad = sealed.clone();
            bad.0[index] ^= 1;
            assert_eq!(seal.open(&bad, b"here").unwrap_err(), UnsealError);
            bad.0.truncate(index);
            assert!(seal.open(&bad, b"here").is_err());
        }
    }

    #[test]
    fn a_key_is_32_bytes_in_base64() {
        for bad in ["", "secret", &STANDARD.encode([1; 31]), &"A".repeat(44)] {
            let refused = SealKey::parse(&Secret::new(bad)).unwrap_err();
            assert!(matches!(refused, BadSealKey::Not32Bytes), "{bad}");
        }
        assert_eq!(format!("{:?}", key(1)), "[seal key]");
    }
}
