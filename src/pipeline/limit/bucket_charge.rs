//! A charge of one permit to one bucket, and the bucket's name in the store that several gateways
//! share.

use std::net::IpAddr;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::buckets::BucketSet;
use super::{RateSubject, SINGLE_KEY, network, site};
use crate::config::{self, LimitKey};
use crate::identity::Client;

#[derive(Debug)]
pub(super) struct BucketCharge {
    pub(super) buckets: Arc<BucketSet>,
    pub(super) key: u64,
    pub(super) kind: BucketKind,
    pub(super) is_dry_run: bool,
    /// Not refunded when a later charge is refused.
    pub(super) is_not_refunded: bool,
    is_charged: bool,
}

/// By what a limit has one bucket each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BucketKind {
    Limit(LimitKey),
    /// The limit of one API key.
    ApiKey,
    Peer,
    /// The IPv6 /48 of a peer.
    Site,
    Name,
    PeerAndName,
    /// One bucket for all.
    Single,
}

/// The request or attempt that is charged.
#[derive(Clone, Copy, Debug)]
pub(super) enum LimitSubject<'a> {
    Request(RateSubject<'a>),
    Login(IpAddr, &'a str),
}

impl BucketCharge {
    pub(super) fn new(buckets: &Arc<BucketSet>, key: u64, kind: BucketKind) -> Self {
        Self {
            buckets: Arc::clone(buckets),
            key,
            kind,
            is_dry_run: false,
            is_not_refunded: false,
            is_charged: false,
        }
    }

    pub(super) fn not_refunded(self) -> Self {
        Self {
            is_not_refunded: true,
            ..self
        }
    }

    pub(super) fn of_limit(
        buckets: &Arc<BucketSet>,
        limit: &config::Limit,
        subject: RateSubject<'_>,
    ) -> Self {
        Self {
            is_dry_run: limit.dry_run,
            ..Self::new(
                buckets,
                key_of(buckets, limit.key, subject),
                BucketKind::Limit(limit.key),
            )
        }
    }

    pub(super) fn charged(&mut self) {
        self.is_charged = true;
    }

    pub(super) fn refund(&mut self) {
        if std::mem::take(&mut self.is_charged) {
            self.buckets.refund(self.key);
        }
    }

    /// Fetches permits from the store.
    pub(super) async fn fill(&self, subject: LimitSubject<'_>) {
        self.buckets.fill(self.key, || self.name(subject)).await;
    }

    /// The bucket's name in the store: the same at every gateway, of fixed length, and hashed so that it
    /// does not reveal its subject.
    fn name(&self, subject: LimitSubject<'_>) -> String {
        use std::fmt::Write as _;
        let text = match (self.kind, subject) {
            (BucketKind::Limit(LimitKey::Class), LimitSubject::Request(of)) => {
                of.class_bucket.to_owned()
            }
            (BucketKind::Limit(LimitKey::Upstream), LimitSubject::Request(of)) => {
                of.upstream.unwrap_or_default().to_owned()
            }
            (BucketKind::Limit(LimitKey::Client), LimitSubject::Request(of))
                if !matches!(of.client, Client::Open) =>
            {
                let is_key = matches!(of.client, Client::Key(_));
                format!(
                    "{}:{}",
                    if is_key { "key" } else { "user" },
                    of.client.name()
                )
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
        for byte in &Sha256::digest(text)[..12] {
            // Writing to memory cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        name
    }
}

fn key_of(buckets: &BucketSet, kind: LimitKey, subject: RateSubject<'_>) -> u64 {
    match (kind, subject.client) {
        (LimitKey::Class, _) => buckets.key(subject.class_bucket),
        (LimitKey::Upstream, _) => buckets.key(subject.upstream),
        (LimitKey::Peer, _) => buckets.key(network(subject.peer)),
        // On an open route the client is not authenticated, so its address counts.
        (LimitKey::Client, Client::Open) => buckets.key(network(subject.peer)),
        (LimitKey::Client, client) => buckets.key(client.id()),
    }
}

/// A charge to the only bucket of `buckets`.
pub(super) fn shared_by_all(buckets: &Arc<BucketSet>, kind: BucketKind) -> BucketCharge {
    BucketCharge::new(buckets, SINGLE_KEY, kind)
}
