//! The upstream's token, as requests carry it.

use http::{HeaderName, HeaderValue};

use crate::clock::Deadline;
use crate::secret::{Secret, SecretPattern};

/// The upstream's token, borrowed for one request.
#[derive(Debug)]
pub struct Lease {
    /// Counts the tokens of this session, in the order in which this gate came to know them.
    pub generation: u64,
    /// The number that all gates know it by; None: it is this gate's alone.
    pub(in crate::upstream) shared: Option<u64>,
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
            ends,
            headers,
            needle: SecretPattern::new(&secret),
            secret,
        }
    }

    /// The lease of all gates that share a store, by the number it has there.
    pub(super) fn known_as(self, number: u64) -> Self {
        Self {
            shared: Some(number),
            ..self
        }
    }

    /// What to put on a request; replaces headers of the same name.
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
