//! The layout of the file. Most of it are grants, of 48 bytes each; the name of their user is
//! stored once. All other records are few, and stored as one line of JSON each.

use std::sync::Arc;

use redb::TableDefinition;

use crate::profiles::Role;
use crate::store::{GrantRecord, LiveGrant, RecordDigest, TokenOrigin};

/// Incremented with each change of this layout.
pub(super) const SCHEMA: u64 = 1;

/// Numbers about the file itself. A file with this table is a store of this program.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("tollgate");
pub(super) const TOKEN_USERS: TableDefinition<'_, &str, &[u8; UserRow::BYTES]> =
    TableDefinition::new("holders");
pub(super) const GRANTS: TableDefinition<'_, &[u8; 32], &[u8; GrantRow::BYTES]> =
    TableDefinition::new("grants");
pub(super) const USERS: TableDefinition<'_, &str, &str> = TableDefinition::new("users");
pub(super) const KEYS: TableDefinition<'_, &str, &str> = TableDefinition::new("keys");
pub(super) const LEASES: TableDefinition<'_, &str, &str> = TableDefinition::new("leases");

/// Keys of `META`.
pub(super) const SCHEMA_KEY: &str = "schema";
/// Number of commits so far: shows whether a commit that failed took place all the same.
pub(super) const BATCH_KEY: &str = "batch";
/// The number of the next user.
pub(super) const NEXT_KEY: &str = "next holder";
/// Wall clock of the last commit, in milliseconds since 1970.
pub(super) const WALL_KEY: &str = "wall";

/// A user of grants. Its number is never given to another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct UserRow {
    pub(super) number: u32,
    pub(super) epoch: u64,
    pub(super) issued: u64,
}

impl UserRow {
    pub(super) const BYTES: usize = 20;

    pub(super) fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        bytes[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[12..].copy_from_slice(&self.issued.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Self {
        Self {
            number: u32::try_from(number(&bytes[..4])).unwrap_or(u32::MAX),
            epoch: number(&bytes[4..12]),
            issued: number(&bytes[12..]),
        }
    }
}

/// A grant's row: user number 4 bytes, epoch 5, end 6, role and origin 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GrantRow {
    pub(super) token_user: u32,
    pub(super) epoch: u64,
    pub(super) ends_millis: u64,
    pub(super) role: Option<Role>,
    pub(super) origin: TokenOrigin,
}

/// Largest epoch and end that fit; practically unreachable.
pub(super) const MAX_EPOCH: u64 = (1 << 40) - 1;
const MAX_MILLIS: u64 = (1 << 48) - 1;
const LEARNED: u8 = 4;

impl GrantRow {
    pub(super) const BYTES: usize = 16;

    pub(super) fn of(record: &GrantRecord, token_user: UserRow) -> Self {
        Self {
            token_user: token_user.number,
            epoch: token_user.epoch,
            ends_millis: record.ends_millis,
            role: record.role,
            origin: record.origin,
        }
    }

    pub(super) fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.token_user.to_le_bytes());
        bytes[4..9].copy_from_slice(&self.epoch.min(MAX_EPOCH).to_le_bytes()[..5]);
        bytes[9..15].copy_from_slice(&self.ends_millis.min(MAX_MILLIS).to_le_bytes()[..6]);
        let role = match self.role {
            None => 0,
            Some(Role::User) => 1,
            Some(Role::Admin) => 2,
        };
        let origin = match self.origin {
            TokenOrigin::Minted => 0,
            TokenOrigin::Learned => LEARNED,
        };
        bytes[15] = role | origin;
        bytes
    }

    /// None: the row has an unknown form.
    pub(super) fn decode(bytes: &[u8; Self::BYTES]) -> Option<Self> {
        let flags = bytes[15];
        let role = match flags & 3 {
            0 => None,
            1 => Some(Role::User),
            2 => Some(Role::Admin),
            _ => return None,
        };
        let origin = match flags & !3 {
            0 => TokenOrigin::Minted,
            LEARNED => TokenOrigin::Learned,
            _ => return None,
        };
        Some(Self {
            token_user: u32::try_from(number(&bytes[..4])).ok()?,
            epoch: number(&bytes[4..9]),
            ends_millis: number(&bytes[9..15]),
            role,
            origin,
        })
    }

    pub(super) fn live<'a>(&self, digest: &[u8; 32], user: &'a Arc<str>) -> LiveGrant<'a> {
        LiveGrant {
            digest: RecordDigest(*digest),
            user,
            token_user: self.token_user,
            role: self.role,
            ends_millis: self.ends_millis,
            epoch: self.epoch,
            origin: self.origin,
        }
    }
}

/// Grants are read in parts, divided by the first two bytes of the digest.
pub(super) const PREFIXES: u64 = 1 << 16;

pub(super) fn prefix_of(digest: &[u8; 32]) -> u64 {
    u64::from(u16::from_be_bytes([digest[0], digest[1]]))
}

/// The first digest with this prefix.
pub(super) fn start_of(prefix: u64) -> [u8; 32] {
    let mut digest = [0; 32];
    let prefix = u16::try_from(prefix).unwrap_or(u16::MAX);
    digest[..2].copy_from_slice(&prefix.to_be_bytes());
    digest
}

/// Little-endian, up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_row_reads_back_as_it_was(
            token_user: u32, epoch in 0..=MAX_EPOCH, ends_millis in 0..=MAX_MILLIS,
            role in 0..3usize, learned: bool, issued: u64,
        ) {
            let role = [None, Some(Role::User), Some(Role::Admin)][role];
            let origin = if learned { TokenOrigin::Learned } else { TokenOrigin::Minted };
            let grant = GrantRow { token_user, epoch, ends_millis, role, origin };
            prop_assert_eq!(GrantRow::decode(&grant.encode()), Some(grant));
            let token_user = UserRow { number: token_user, epoch, issued };
            prop_assert_eq!(UserRow::decode(&token_user.encode()), token_user);
        }
    }

    #[test]
    fn a_row_of_an_unknown_kind_is_an_error() {
        for flags in [3, 8, 255] {
            let mut bytes = [0; GrantRow::BYTES];
            bytes[15] = flags;
            assert_eq!(GrantRow::decode(&bytes), None);
        }
    }
}
