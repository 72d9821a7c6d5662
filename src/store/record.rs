//! The stored records, the same in every engine and in an export. They contain digests, password
//! hashes and sealed bytes, never a secret in the clear.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::profiles::Role;

/// SHA-256 of a token or key. Written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordDigest(pub [u8; 32]);

/// One line of an export, and the unit of an import.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExportRecord {
    User(UserRecord),
    Key(KeyRecord),
    Epoch(UserEpoch),
    Grant(GrantRecord),
    Lease(SealedLease),
}

/// An entry of the user directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserRecord {
    #[serde(with = "shared_text")]
    pub name: Arc<str>,
    pub role: Role,
    pub hash: PhcText,
    pub must_change: bool,
    pub is_first_admin: bool,
    /// The first admin's password as the configuration gave it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configured: Option<PhcText>,
}

/// A password hash, as a PHC string. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PhcText(pub String);

/// An API key made at run time; its scope is in the notation of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    #[serde(with = "shared_text")]
    pub name: Arc<str>,
    pub digest: RecordDigest,
    /// Seconds since 1970; None: never.
    pub expires: Option<i64>,
    pub role: Role,
    /// Empty: the monitoring nodes only.
    pub paths: Vec<String>,
    /// Empty: every method.
    pub methods: Vec<String>,
    /// The key's own rate limit; None: it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// Names of upstreams; empty: every one. A version that does not know the field refuses the record.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<String>,
}

/// How often all of a user's tokens were ended, and how many tokens the user was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UserEpoch {
    #[serde(with = "shared_text")]
    pub user: Arc<str>,
    /// A grant of an earlier epoch is dead.
    pub epoch: u64,
    /// Tokens given to this user since it was created.
    pub issued: u64,
}

/// What a token entitles to, until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRecord {
    pub digest: RecordDigest,
    #[serde(with = "shared_text")]
    pub user: Arc<str>,
    /// None: a user of the upstream's, whose role only the upstream knows.
    pub role: Option<Role>,
    /// Expiry on the wall clock, in milliseconds since 1970.
    pub ends_millis: u64,
    /// The user's epoch when the grant was stored; set by the store.
    pub epoch: u64,
    pub origin: TokenOrigin,
}

/// Where a token comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenOrigin {
    Minted,
    /// Seen in the upstream's response to a login, or confirmed by the upstream.
    Learned,
}

/// An upstream's token, sealed with the operator's key and bound to this upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedLease {
    #[serde(with = "shared_text")]
    pub upstream: Arc<str>,
    /// Expiry on the wall clock, in milliseconds since 1970; also part of what is sealed.
    pub ends_millis: u64,
    pub sealed: SealedBytes,
}

/// Nonce, ciphertext and tag. Written as base64.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedBytes(pub Vec<u8>);

impl RecordDigest {
    fn hex(&self) -> String {
        use fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in self.0 {
            // Writing to memory cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).ok()?;
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for RecordDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[digest]")
    }
}

impl fmt::Debug for PhcText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[password hash]")
    }
}

impl fmt::Debug for SealedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[sealed]")
    }
}

impl Serialize for RecordDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for RecordDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::from_hex(&text)
            .ok_or_else(|| serde::de::Error::custom("a digest has 64 hexadecimal digits"))
    }
}

impl Serialize for SealedBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for SealedBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text);
        let bytes = bytes.map_err(|_| serde::de::Error::custom("sealed bytes are base64"))?;
        Ok(Self(bytes))
    }
}

/// (De)serialises text that many records share.
mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &str, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(from).map(Arc::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_one_line_and_reads_back_as_it_was() {
        let records = [
            ExportRecord::User(UserRecord {
                name: "anna".into(),
                role: Role::Admin,
                hash: PhcText("$argon2id$x".to_owned()),
                must_change: false,
                is_first_admin: true,
                configured: Some(PhcText("$argon2id$y".to_owned())),
            }),
            ExportRecord::Key(KeyRecord {
                name: "bot".into(),
                digest: RecordDigest([7; 32]),
                expires: Some(1),
                role: Role::User,
                paths: vec!["/v1/*".to_owned()],
                methods: vec!["GET".to_owned()],
                limit: Some("5/s burst 10".to_owned()),
                upstreams: vec!["north".to_owned()],
            }),
            ExportRecord::Epoch(UserEpoch {
                user: "anna".into(),
                epoch: 3,
                issued: 4,
            }),
            ExportRecord::Grant(GrantRecord {
                digest: RecordDigest([0xab; 32]),
                user: "anna".into(),
                role: None,
                ends_millis: 5,
                epoch: 3,
                origin: TokenOrigin::Learned,
            }),
            ExportRecord::Lease(SealedLease {
                upstream: "main".into(),
                ends_millis: 6,
                sealed: SealedBytes(vec![1, 2, 3]),
            }),
        ];
        for record in records {
            let line = serde_json::to_string(&record).unwrap();
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<ExportRecord>(&line).unwrap(), record);
        }
    }

    #[test]
    fn debug_shows_no_digest_hash_or_sealed_bytes() {
        let shown = format!(
            "{:?} {:?} {:?}",
            RecordDigest([1; 32]),
            PhcText("$canary".to_owned()),
            SealedBytes(vec![1])
        );
        assert_eq!(shown, "[digest] [password hash] [sealed]");
    }

    #[test]
    fn an_invalid_digest_is_refused() {
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"é".repeat(32)] {
            let text = serde_json::to_string(bad).unwrap();
            assert!(
                serde_json::from_str::<RecordDigest>(&text).is_err(),
                "{bad}"
            );
        }
    }
}
