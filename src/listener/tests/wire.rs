//! The guard alone: what is good passes however it is cut, and bad stays bad.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::wire::Wire;

/// The pieces of `text` between `cuts`.
fn cut<'t>(text: &'t [u8], cuts: &[prop::sample::Index]) -> Vec<&'t [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|c| c.index(text.len() + 1)).collect();
    at.extend([0, text.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &text[w[0]..w[1]]).collect()
}

/// Offset of the refused byte in all of `text`.
#[test]
fn it_knows_when_it_is_between_requests() {
    let all = b"\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
    let between = |count: usize| {
        let mut wire = Wire::new();
        wire.check(&all[..count]).unwrap();
        wire.is_between_requests()
    };
    let quiet: Vec<_> = (0..=all.len()).filter(|&count| between(count)).collect();
    assert_eq!(quiet, [0, all.len()]);
}

fn refused(text: &[u8], cuts: &[prop::sample::Index]) -> Option<usize> {
    let mut wire = Wire::new();
    let mut before = 0;
    for piece in cut(text, cuts) {
        if let Err(violation) = wire.check(piece) {
            return Some(before + violation.0);
        }
        before += piece.len();
    }
    None
}

fn field() -> impl Strategy<Value = String> {
    let name = "[A-Za-z][A-Za-z0-9-]{0,18}|Content-Typ|Content-Lengt|Content-Length2|TE|Transfer-Encodings";
    (name, "[ -~]{0,30}")
        .prop_filter("framing is added apart", |(name, _)| {
            let name = name.to_ascii_lowercase();
            name != "content-length" && name != "transfer-encoding"
        })
        .prop_map(|(name, value)| format!("{name}: {value}\r\n"))
}

fn body() -> impl Strategy<Value = (String, Vec<u8>)> {
    let chunk = vec(any::<u8>(), 1..40);
    prop_oneof![
        Just((String::new(), Vec::new())),
        vec(any::<u8>(), 0..80)
            .prop_map(|bytes| (format!("Content-Length: {}\r\n", bytes.len()), bytes)),
        (vec(chunk, 0..4), vec(field(), 0..3)).prop_map(|(chunks, trailers)| {
            let mut bytes = Vec::new();
            for chunk in chunks {
                bytes.extend(format!("{:X};x=y\r\n", chunk.len()).bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(format!("0\r\n{}\r\n", trailers.concat()).bytes());
            ("tRansfer-encoding:\tchunkeD \r\n".to_owned(), bytes)
        }),
    ]
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    (vec(field(), 0..5), body(), vec(field(), 0..5)).prop_map(|(before, (framing, body), after)| {
        let (before, after) = (before.concat(), after.concat());
        let mut text = format!("POST /x HTTP/1.1\r\n{before}{framing}{after}\r\n").into_bytes();
        text.extend(body);
        text
    })
}

proptest! {
    #[test]
    fn good_requests_pass_however_they_are_cut(
        requests in vec(request(), 1..4),
        cuts in vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let text = requests.concat();
        prop_assert_eq!(refused(&text, &cuts), None);
        let mut wire = Wire::new();
        for piece in cut(&text, &cuts) {
            wire.check(piece).unwrap();
        }
        prop_assert_eq!(wire.heads(), requests.len() as u64, "each body's end is known");
        prop_assert!(!wire.is_in_head());
    }

    #[test]
    fn cuts_change_nothing_about_what_is_refused(
        text in vec(prop_oneof![
            Just("\r\n"), Just("\n"), Just("\r"), Just("0"), Just("5"), Just(" "), Just("a"),
            Just("GET / HTTP/1.1\r\n"), Just("Content-Length"), Just(":"), Just("Host: a\r\n"),
            Just("Transfer-Encoding: chunked\r\n"), Just("Content-Length: 5\r\n"), Just("5\r\nabcde\r\n"),
        ], 0..20),
        cuts in vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let text = text.concat().into_bytes();
        prop_assert_eq!(refused(&text, &cuts), refused(&text, &[]));
    }

    #[test]
    fn no_bytes_make_it_panic(pieces in vec(vec(any::<u8>(), 0..50), 0..20)) {
        let mut wire = Wire::new();
        for piece in pieces {
            if wire.check(&piece).is_err() {
                break;
            }
        }
    }
}
