//! The injected secret must not reach the client: where a response echoes it, it is overwritten.
//! The length of the body does not change.

use bytes::Bytes;

use crate::secret::SecretPattern;

/// `chunk` with each occurrence of the secret overwritten; the length is unchanged.
pub(in crate::pipeline) fn redact(chunk: Bytes, secret: &SecretPattern) -> Bytes {
    secret.redacted(&chunk).map_or(chunk, Bytes::from)
}

/// A prefix of the secret that is no longer than this, and no longer than a quarter of the secret,
/// may be released: it is too short to be of use.
const MAX_RELEASED_PREFIX: usize = 7;

/// Redacts a body that arrives in chunks, wherever the chunks are cut. When a chunk ends with a
/// prefix of the secret, that prefix is held back until the next chunk arrives. A short prefix may
/// be released earlier (`release`); if the rest of the secret follows after all, the rest is
/// overwritten.
#[derive(Debug)]
pub(super) struct SecretRedactor {
    secret: SecretPattern,
    /// Bytes of the body that are still to be searched.
    remaining: usize,
    /// Length of the prefix of the secret with which the body so far ends.
    prefix: usize,
    /// Bytes of that prefix that have been passed on.
    released: usize,
}

impl SecretRedactor {
    /// Searches the first `limit` bytes of a body.
    pub(super) fn new(secret: SecretPattern, limit: usize) -> Self {
        Self {
            secret,
            remaining: limit,
            prefix: 0,
            released: 0,
        }
    }

    /// What may be passed on now that `chunk` has arrived; may be empty.
    pub(super) fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.remaining == 0 && self.prefix == 0 {
            return chunk;
        }
        self.remaining = self.remaining.saturating_sub(chunk.len());
        let whole = match self.prefix {
            0 => chunk,
            length => [self.secret_prefix(length), &chunk].concat().into(),
        };
        let clean = redact(whole, &self.secret);
        self.prefix = match self.remaining {
            0 => 0,
            _ => self.secret_prefix_at_end(&clean),
        };
        let end = clean.len() - self.prefix;
        let start = self.released.min(end);
        self.released -= start;
        clean.slice(start..end)
    }

    /// What was held back, once the body has ended.
    pub(super) fn finish(&mut self) -> Option<Bytes> {
        let rest = self.held_back();
        self.prefix = 0;
        self.released = 0;
        rest
    }

    /// Whether the prefix that is held back is short enough to be released.
    pub(super) fn can_release(&self) -> bool {
        let max = MAX_RELEASED_PREFIX.min(self.secret.expose().len() / 4);
        self.is_holding() && self.prefix <= max
    }

    /// The prefix that is held back, if it is short enough to be released.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        if !self.can_release() {
            return None;
        }
        let held_back = self.held_back();
        self.released = self.prefix;
        held_back
    }

    pub(super) fn secret(&self) -> &SecretPattern {
        &self.secret
    }

    pub(super) fn is_holding(&self) -> bool {
        self.prefix > self.released
    }

    fn held_back(&self) -> Option<Bytes> {
        let held_back = &self.secret_prefix(self.prefix)[self.released..];
        (!held_back.is_empty()).then(|| Bytes::copy_from_slice(held_back))
    }

    fn secret_prefix(&self, length: usize) -> &[u8] {
        &self.secret.expose()[..length]
    }

    /// Length of the longest proper prefix of the secret with which `chunk` ends.
    fn secret_prefix_at_end(&self, chunk: &[u8]) -> usize {
        let secret = self.secret.expose();
        let max = secret.len().saturating_sub(1).min(chunk.len());
        let first = chunk.len() - max;
        (first..chunk.len())
            .find(|&index| secret.starts_with(&chunk[index..]))
            .map_or(0, |index| chunk.len() - index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    fn pattern(text: &str) -> SecretPattern {
        SecretPattern::new(&Secret::new(text))
    }

    const LIMIT: usize = 1 << 16;

    #[test]
    fn an_echoed_secret_is_overwritten_and_the_length_kept() {
        let body = Bytes::from_static(b"{\"a\":\"s3cret\",\"b\":\"s3crets3cret\"}");
        let clean = redact(body.clone(), &pattern("s3cret"));
        assert_eq!(clean.len(), body.len());
        assert_eq!(&clean[..], b"{\"a\":\"******\",\"b\":\"************\"}");
    }

    fn in_chunks(body: &[u8], cuts: &[usize], limit: usize) -> Vec<u8> {
        let mut redactor = SecretRedactor::new(pattern("abab-abac"), limit);
        let mut out = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&body.len()]) {
            let cut = cut.clamp(from, body.len());
            out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(&body[from..cut])));
            from = cut;
        }
        out.extend(redactor.finish().into_iter().flatten());
        assert!(!redactor.is_holding());
        out
    }

    #[test]
    fn bytes_that_cannot_be_part_of_the_secret_are_forwarded_at_once() {
        let mut redactor = SecretRedactor::new(pattern("token"), LIMIT);
        assert_eq!(redactor.push(Bytes::from_static(b"a to")), "a ");
        assert_eq!(redactor.push(Bytes::from_static(b"p")), "top");
        assert_eq!(redactor.push(Bytes::from_static(b"tok")), "");
        assert_eq!(redactor.finish().unwrap(), "tok");
    }

    #[test]
    fn beyond_the_search_limit_nothing_is_held_back() {
        assert_eq!(in_chunks(b"0123abab", &[4], 4), b"0123abab");
    }

    #[test]
    fn a_short_prefix_is_released_and_the_rest_of_the_secret_is_overwritten() {
        let secret = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl";
        let mut redactor = SecretRedactor::new(pattern(secret), LIMIT);
        assert_eq!(redactor.push(Bytes::from_static(b"alive")), "aliv");
        assert_eq!(redactor.release().unwrap(), "e");
        assert!(!redactor.is_holding() && redactor.release().is_none());
        assert_eq!(redactor.push(Bytes::from_static(b"yJh")), "");
        assert_eq!(redactor.release().unwrap(), "yJh");
        // With this chunk the prefix is too long to be released.
        assert_eq!(redactor.push(Bytes::from_static(b"bGciOi")), "");
        assert!(redactor.is_holding() && !redactor.can_release());
        let rest = Bytes::copy_from_slice(&secret.as_bytes()[10..]);
        let hidden = redactor.push([rest, Bytes::from_static(b"!e")].concat().into());
        assert_eq!(hidden, format!("{}!", "*".repeat(secret.len() - 4)));
        assert_eq!(redactor.finish().unwrap(), "e");
        // The limit is shorter for a short secret.
        let mut redactor = SecretRedactor::new(pattern("s3cret-5"), LIMIT);
        assert_eq!(redactor.push(Bytes::from_static(b"as3c")), "a");
        assert!(!redactor.can_release());
        assert_eq!(redactor.push(Bytes::from_static(b"ss")), "s3cs");
        assert_eq!(redactor.release().unwrap(), "s");
    }

    proptest! {
        #[test]
        fn released_bytes_show_no_more_than_a_short_prefix_of_the_secret(
            words in prop::collection::vec("(abab-abac-abab-a|abab-|a|b|ac|x)", 0..12),
            chunks in prop::collection::vec(1..9_usize, 1..60),
        ) {
            let secret = "abab-abac-abab-a";
            let body = words.concat();
            let mut redactor = SecretRedactor::new(pattern(secret), LIMIT);
            let (mut out, mut rest) = (Vec::new(), body.as_bytes());
            for length in chunks {
                let (chunk, later) = rest.split_at(length.min(rest.len()));
                rest = later;
                out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(chunk)));
                out.extend(redactor.release().into_iter().flatten());
            }
            out.extend_from_slice(&redactor.push(Bytes::copy_from_slice(rest)));
            out.extend(redactor.finish().into_iter().flatten());
            prop_assert_eq!(out.len(), body.len());
            let clean = redact(Bytes::from(body.clone()), &pattern(secret));
            for (index, shown) in out.iter().enumerate() {
                // A byte of the secret that was passed on is within its first quarter.
                if *shown != clean[index] {
                    let start = (0..=index).rev().find(|start| body[*start..].starts_with(secret));
                    prop_assert!(index - start.unwrap() < secret.len() / 4, "{}", index);
                }
            }
        }

        #[test]
        fn the_result_does_not_depend_on_where_the_chunks_are_cut(
            words in prop::collection::vec("(abab-abac|abab-|a|b|ac|x)", 0..12),
            mut cuts in prop::collection::vec(0..80usize, 0..8),
        ) {
            cuts.sort_unstable();
            let body = words.concat();
            let whole = redact(Bytes::from(body.clone()), &pattern("abab-abac"));
            prop_assert_eq!(in_chunks(body.as_bytes(), &cuts, LIMIT), whole.to_vec());
        }
    }
}
