//! Follows the messages of a call: one byte of flags, four of length, the message.

const PREFIX: usize = 5;

/// Where in a message the body so far ends.
#[derive(Debug, Default)]
pub(super) struct GrpcMessages {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that have come; 0: between two messages, or within one.
    received: usize,
    /// Bytes of the message that are still to come.
    left: u64,
}

impl GrpcMessages {
    /// Whether the body ends with a whole message, once `bytes` have come.
    pub(super) fn ends_with(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            if self.left > 0 {
                let skipped = usize::try_from(self.left)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                self.left -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.prefix[self.received] = bytes[0];
            self.received += 1;
            bytes = &bytes[1..];
            if self.received == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length).into();
                self.received = 0;
            }
        }
        self.left == 0 && self.received == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_message_is_found_wherever_the_bytes_are_cut() {
        let body = [
            &[0, 0, 0, 0, 2][..],
            b"ab",
            &[1, 0, 0, 0, 0],
            &[0, 0, 0, 0, 1],
            b"c",
        ]
        .concat();
        let ends = [7, 12, 18];
        for cut in 0..=body.len() {
            let mut messages = GrpcMessages::default();
            assert_eq!(
                messages.ends_with(&body[..cut]),
                cut == 0 || ends.contains(&cut),
                "{cut}"
            );
            assert!(messages.ends_with(&body[cut..]), "{cut}");
        }
    }
}
