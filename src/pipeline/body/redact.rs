//! Our secret must not come down again: where an answer echoes it, it is overwritten
//! and the length kept.

use bytes::Bytes;

use crate::secret::SecretPattern;

/// `piece` with each occurrence of the secret overwritten, its length unchanged.
pub(in crate::pipeline) fn scrub(piece: Bytes, needle: &SecretPattern) -> Bytes {
    needle.redacted(&piece).map_or(piece, Bytes::from)
}

/// A beginning of the secret up to this length, and up to a quarter of it, is no secret: it is
/// held back for a moment only.
const MOST_RELEASED: usize = 7;

/// The same for a body that arrives in pieces, wherever they are cut. A piece that
/// ends like the secret begins is held back by that much until the next one comes. What is
/// no secret by itself need not wait so long (`release`): should the rest of the secret come
/// after it all the same, that rest is overwritten.
#[derive(Debug)]
pub(super) struct SecretRedactor {
    needle: SecretPattern,
    /// How much of the body is still searched.
    left: usize,
    /// With so many bytes of the secret's beginning ends what has come.
    begun: usize,
    /// So many of those have gone down.
    released: usize,
}

impl SecretRedactor {
    /// Searches the first `reach` bytes.
    pub(in crate::pipeline) fn new(needle: SecretPattern, reach: usize) -> Self {
        Self {
            needle,
            left: reach,
            begun: 0,
            released: 0,
        }
    }

    /// What may go down now that `piece` has come; perhaps nothing yet.
    pub(in crate::pipeline) fn next(&mut self, piece: Bytes) -> Bytes {
        if self.left == 0 && self.begun == 0 {
            return piece;
        }
        self.left = self.left.saturating_sub(piece.len());
        let whole = match self.begun {
            0 => piece,
            begun => [self.beginning(begun), &piece].concat().into(),
        };
        let clean = scrub(whole, &self.needle);
        self.begun = match self.left {
            0 => 0,
            _ => self.ends_like_secret(&clean),
        };
        let end = clean.len() - self.begun;
        let from = self.released.min(end);
        self.released -= from;
        clean.slice(from..end)
    }

    /// What was held back, when no more comes.
    pub(in crate::pipeline) fn rest(&mut self) -> Option<Bytes> {
        let rest = self.held();
        (self.begun, self.released) = (0, 0);
        rest
    }

    /// Whether what is held back is no secret by itself.
    pub(super) fn can_release(&self) -> bool {
        let most = MOST_RELEASED.min(self.needle.expose().len() / 4);
        self.is_holding() && self.begun <= most
    }

    /// What is held back, if it is no secret by itself.
    pub(super) fn release(&mut self) -> Option<Bytes> {
        if !self.can_release() {
            return None;
        }
        let held = self.held();
        self.released = self.begun;
        held
    }

    pub(in crate::pipeline) fn needle(&self) -> &SecretPattern {
        &self.needle
    }

    pub(super) fn is_holding(&self) -> bool {
        self.begun > self.released
    }

    fn held(&self) -> Option<Bytes> {
        let held = &self.beginning(self.begun)[self.released..];
        (!held.is_empty()).then(|| Bytes::copy_from_slice(held))
    }

    fn beginning(&self, length: usize) -> &[u8] {
        &self.needle.expose()[..length]
    }

    /// Length of the longest end of `piece` that the secret begins with.
    fn ends_like_secret(&self, piece: &[u8]) -> usize {
        let secret = self.needle.expose();
        let most = secret.len().saturating_sub(1).min(piece.len());
        let from = piece.len() - most;
        (from..piece.len())
            .find(|&at| secret.starts_with(&piece[at..]))
            .map_or(0, |at| piece.len() - at)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::Secret;

    fn needle(text: &str) -> SecretPattern {
        SecretPattern::new(&Secret::new(text))
    }

    const REACH: usize = 1 << 16;

    #[test]
    fn an_echoed_secret_is_overwritten_and_the_length_kept() {
        let body = Bytes::from_static(b"{\"a\":\"s3cret\",\"b\":\"s3crets3cret\"}");
        let clean = scrub(body.clone(), &needle("s3cret"));
        assert_eq!(clean.len(), body.len());
        assert_eq!(&clean[..], b"{\"a\":\"******\",\"b\":\"************\"}");
    }

    fn in_pieces(body: &[u8], cuts: &[usize], reach: usize) -> Vec<u8> {
        let mut scrubber = SecretRedactor::new(needle("abab-abac"), reach);
        let mut out = Vec::new();
        let mut from = 0;
        for &cut in cuts.iter().chain([&body.len()]) {
            let cut = cut.clamp(from, body.len());
            out.extend_from_slice(&scrubber.next(Bytes::copy_from_slice(&body[from..cut])));
            from = cut;
        }
        out.extend(scrubber.rest().into_iter().flatten());
        assert!(!scrubber.is_holding());
        out
    }

    #[test]
    fn what_is_not_held_goes_down_at_once() {
        let mut scrubber = SecretRedactor::new(needle("token"), REACH);
        assert_eq!(scrubber.next(Bytes::from_static(b"a to")), "a ");
        assert_eq!(scrubber.next(Bytes::from_static(b"p")), "top");
        assert_eq!(scrubber.next(Bytes::from_static(b"tok")), "");
        assert_eq!(scrubber.rest().unwrap(), "tok");
    }

    #[test]
    fn beyond_its_reach_nothing_is_held() {
        assert_eq!(in_pieces(b"0123abab", &[4], 4), b"0123abab");
    }

    #[test]
    fn a_short_beginning_is_released_and_what_completes_it_is_overwritten() {
        let secret = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl";
        let mut scrubber = SecretRedactor::new(needle(secret), REACH);
        assert_eq!(scrubber.next(Bytes::from_static(b"alive")), "aliv");
        assert_eq!(scrubber.release().unwrap(), "e");
        assert!(!scrubber.is_holding() && scrubber.release().is_none());
        assert_eq!(scrubber.next(Bytes::from_static(b"yJh")), "");
        assert_eq!(scrubber.release().unwrap(), "yJh");
        // The next one makes it long enough to be of use to somebody.
        assert_eq!(scrubber.next(Bytes::from_static(b"bGciOi")), "");
        assert!(scrubber.is_holding() && !scrubber.can_release());
        let rest = Bytes::copy_from_slice(&secret.as_bytes()[10..]);
        let hidden = scrubber.next([rest, Bytes::from_static(b"!e")].concat().into());
        assert_eq!(hidden, format!("{}!", "*".repeat(secret.len() - 4)));
        assert_eq!(scrubber.rest().unwrap(), "e");
        // Of a short secret even less.
        let mut scrubber = SecretRedactor::new(needle("s3cret-5"), REACH);
        assert_eq!(scrubber.next(Bytes::from_static(b"as3c")), "a");
        assert!(!scrubber.can_release());
        assert_eq!(scrubber.next(Bytes::from_static(b"ss")), "s3cs");
        assert_eq!(scrubber.release().unwrap(), "s");
    }

    proptest! {
        #[test]
        fn whatever_is_released_shows_no_more_than_the_beginning_of_a_secret(
            words in prop::collection::vec("(abab-abac-abab-a|abab-|a|b|ac|x)", 0..12),
            pieces in prop::collection::vec(1..9_usize, 1..60),
        ) {
            let secret = "abab-abac-abab-a";
            let body = words.concat();
            let mut scrubber = SecretRedactor::new(needle(secret), REACH);
            let (mut out, mut rest) = (Vec::new(), body.as_bytes());
            for length in pieces {
                let (piece, later) = rest.split_at(length.min(rest.len()));
                rest = later;
                out.extend_from_slice(&scrubber.next(Bytes::copy_from_slice(piece)));
                out.extend(scrubber.release().into_iter().flatten());
            }
            out.extend_from_slice(&scrubber.next(Bytes::copy_from_slice(rest)));
            out.extend(scrubber.rest().into_iter().flatten());
            prop_assert_eq!(out.len(), body.len());
            let clean = scrub(Bytes::from(body.clone()), &needle(secret));
            for (at, shown) in out.iter().enumerate() {
                // In the clear although it should not be: within a quarter of the secret's length.
                if *shown != clean[at] {
                    let begins = (0..=at).rev().find(|from| body[*from..].starts_with(secret));
                    prop_assert!(at - begins.unwrap() < secret.len() / 4, "{}", at);
                }
            }
        }

        #[test]
        fn wherever_the_pieces_are_cut_the_outcome_is_that_of_the_whole(
            words in prop::collection::vec("(abab-abac|abab-|a|b|ac|x)", 0..12),
            mut cuts in prop::collection::vec(0..80usize, 0..8),
        ) {
            cuts.sort_unstable();
            let body = words.concat();
            let whole = scrub(Bytes::from(body.clone()), &needle("abab-abac"));
            prop_assert_eq!(in_pieces(body.as_bytes(), &cuts, REACH), whole.to_vec());
        }
    }
}
