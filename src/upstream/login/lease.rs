//! The upstream's token, as requests carry it.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::clock::Deadline;
use crate::secret::{Secret, SecretPattern};

/// The upstream's token, borrowed for one request.
#[derive(Debug)]
pub struct Lease {
    /// Counts the tokens of this session, in the order in which this gateway got them.
    pub generation: u64,
    /// The generation in the shared store; None: a local lease.
    pub(in crate::upstream) shared: Option<u64>,
    /// The only endpoint at which it is valid; None: it is at all.
    pub(super) endpoint: Option<Arc<str>>,
    pub(in crate::upstream) ends: Deadline,
    /// Marked sensitive: their `Debug` is blank.
    pub(in crate::upstream) headers: Vec<(HeaderName, HeaderValue)>,
    pub(in crate::upstream) secret: Secret,
    needle: SecretPattern,
}

impl Lease {
    pub(in crate::upstream) fn new(
        generation: u64,
        ends: Deadline,
        headers: Vec<(HeaderName, HeaderValue)>,
        secret: Secret,
    ) -> Self {
        Self {
            generation,
            shared: None,
            endpoint: None,
            ends,
            headers,
            needle: SecretPattern::new(&secret),
            secret,
        }
    }

    /// Marks it as a shared lease, with its generation in the store.
    pub(super) fn known_as(self, number: u64) -> Self {
        Self {
            shared: Some(number),
            ..self
        }
    }

    /// The only endpoint at which it is valid; None: it is at all.
    pub fn endpoint(&self) -> Option<&Arc<str>> {
        self.endpoint.as_ref()
    }

    /// The header fields for a request; they replace fields of the same name.
    pub fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.headers
    }

    /// The bare token, to be redacted from responses.
    pub fn needle(&self) -> &SecretPattern {
        &self.needle
    }

    pub fn ends(&self) -> Deadline {
        self.ends
    }
}
