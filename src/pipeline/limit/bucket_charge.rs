//! One bucket that a request must draw on, and what all gates call it.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::buckets::BucketSet;
use super::{ALL, RateSubject, network, site};
use crate::config::{self, LimitKey};
use crate::identity::Client;

#[derive(Debug)]
pub(super) struct BucketCharge {
    pub(super) buckets: Arc<BucketSet>,
    pub(super) key: u64,
    pub(super) by: BucketKind,
    pub(super) is_dry_run: bool,
    /// Not given back when a draw after it is refused.
    pub(super) is_kept: bool,
    is_spent: bool,
}

/// What tells the buckets of one limit apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BucketKind {
    Limit(LimitKey),
    /// An API key's own.
    ApiKey,
    Peer,
    /// The IPv6 /48 that a peer is in.
    Site,
    Name,
    PeerAndName,
    /// One bucket serves all.
    Nothing,
}

/// Whose draws these are.
#[derive(Clone, Copy, Debug)]
pub(super) enum LimitSubject<'a> {
    Request(RateSubject<'a>),
    Login(IpAddr, &'a str),
}

impl BucketCharge {
    pub(super) fn new(buckets: &Arc<BucketSet>, key: u64, by: BucketKind) -> Self {
        Self {
            buckets: Arc::clone(buckets),
            key,
            by,
            is_dry_run: false,
            is_kept: false,
            is_spent: false,
        }
    }

    pub(super) fn kept(self) -> Self {
        Self {
            is_kept: true,
            ..self
        }
    }

    pub(super) fn of_limit(
        buckets: &Arc<BucketSet>,
        limit: &config::Limit,
        of: RateSubject<'_>,
    ) -> Self {
        Self {
            is_dry_run: limit.dry_run,
            ..Self::new(
                buckets,
                key_of(buckets, limit.key, of),
                BucketKind::Limit(limit.key),
            )
        }
    }

    pub(super) fn spent(&mut self) {
        self.is_spent = true;
    }

    pub(super) fn give_back(&mut self) {
        if std::mem::take(&mut self.is_spent) {
            self.buckets.give_back(self.key);
        }
    }

    /// Gets permits from the store.
    pub(super) async fn fill(&self, whose: LimitSubject<'_>) {
        self.buckets.fill(self.key, || self.name(whose)).await;
    }

    /// The same at every gate, of one length, and telling nothing of who it is about.
    fn name(&self, whose: LimitSubject<'_>) -> String {
        use std::fmt::Write as _;
        let subject = match (self.by, whose) {
            (BucketKind::Limit(LimitKey::Class), LimitSubject::Request(of)) => of.class.to_owned(),
            (BucketKind::Limit(LimitKey::Client), LimitSubject::Request(of))
                if !matches!(of.client, Client::Open) =>
            {
                let kind = matches!(of.client, Client::Key(_));
                format!("{}:{}", if kind { "key" } else { "user" }, of.client.name())
            }
            (BucketKind::Limit(_), LimitSubject::Request(of)) => format!("{:?}", network(of.peer)),
            (BucketKind::ApiKey, LimitSubject::Request(of)) => of.client.name().to_owned(),
            (BucketKind::Peer, LimitSubject::Login(peer, _)) => format!("{:?}", network(peer)),
            (BucketKind::Site, LimitSubject::Login(peer, _)) => format!("{:?}", site(peer)),
            (BucketKind::Name, LimitSubject::Login(_, name)) => name.to_owned(),
            (BucketKind::PeerAndName, LimitSubject::Login(peer, name)) => {
                format!("{:?} {name}", network(peer))
            }
            _ => String::new(),
        };
        let mut name = format!("{}:", self.buckets.name());
        for byte in &Sha256::digest(subject)[..12] {
            // Writing to memory cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

fn key_of(buckets: &BucketSet, kind: LimitKey, subject: RateSubject<'_>) -> u64 {
    match (kind, subject.client) {
        (LimitKey::Class, _) => buckets.key(subject.class),
        (LimitKey::Peer, _) => buckets.key(network(subject.peer)),
        // On an open route nobody was asked: the address is all there is to tell by.
        (LimitKey::Client, Client::Open) => buckets.key(network(subject.peer)),
        (LimitKey::Client, client) => buckets.key(client.id()),
    }
}

/// One bucket for all who draw on it.
pub(super) fn of_all(buckets: &Arc<BucketSet>, by: BucketKind) -> BucketCharge {
    BucketCharge::new(buckets, ALL, by)
}
