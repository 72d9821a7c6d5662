//! The flags of a stored token in one byte: its role, whether it was used lately, and whether it
//! is about to end for a newer one. All of them change without a lock.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::profiles::Role;

const ROLE: u8 = 0b0011;
const USED: u8 = 0b0100;
const LEAVING: u8 = 0b1000;

#[derive(Debug)]
pub(super) struct GrantFlags(AtomicU8);

impl GrantFlags {
    pub(super) fn new(role: Option<Role>) -> Self {
        Self(AtomicU8::new(match role {
            None => 0,
            Some(Role::User) => 1,
            Some(Role::Admin) => 2,
        }))
    }

    /// The flags of a token that was just handed out: its client is about to use it.
    pub(super) fn fresh(role: Option<Role>) -> Self {
        let flags = Self::new(role);
        flags.mark_used();
        flags
    }

    pub(super) fn role(&self) -> Option<Role> {
        match self.load() & ROLE {
            1 => Some(Role::User),
            2 => Some(Role::Admin),
            _ => None,
        }
    }

    /// Most calls find the mark set and only read it, so that no cache line moves.
    pub(super) fn mark_used(&self) {
        if self.load() & USED == 0 {
            self.0.fetch_or(USED, Ordering::Relaxed);
        }
    }

    /// Whether the token was used since the last call.
    pub(super) fn take_used(&self) -> bool {
        self.0.fetch_and(!USED, Ordering::Relaxed) & USED != 0
    }

    /// Marks the token as leaving; returns whether this call did so.
    pub(super) fn leave(&self) -> bool {
        self.0.fetch_or(LEAVING, Ordering::Relaxed) & LEAVING == 0
    }

    pub(super) fn stay(&self) {
        self.0.fetch_and(!LEAVING, Ordering::Relaxed);
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.load() & LEAVING != 0
    }

    fn load(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}
