//! The framing guard alone: the result does not depend on how the bytes are split.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::listener::framing_fuzz;
use crate::listener::http1::framing_guard::{FramingFault, HeadLimits, Http1FramingGuard};

const LIMITS: HeadLimits = HeadLimits {
    bytes: 4096,
    fields: 20,
};

/// `text` split at `cuts`.
fn cut<'t>(text: &'t [u8], cuts: &[prop::sample::Index]) -> Vec<&'t [u8]> {
    let mut at: Vec<usize> = cuts.iter().map(|c| c.index(text.len() + 1)).collect();
    at.extend([0, text.len()]);
    at.sort_unstable();
    at.windows(2).map(|w| &text[w[0]..w[1]]).collect()
}

#[test]
fn the_guard_knows_when_it_is_between_requests() {
    let all = b"\r\nPOST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab";
    let between = |count: usize| {
        let mut guard = Http1FramingGuard::new(LIMITS);
        guard.check(&all[..count]).unwrap();
        guard.is_between_requests()
    };
    let offsets: Vec<_> = (0..=all.len()).filter(|&count| between(count)).collect();
    assert_eq!(offsets, [0, all.len()]);
}

/// Offset of the refused byte in all of `text`.
fn refused(text: &[u8], cuts: &[prop::sample::Index]) -> Option<usize> {
    let mut guard = Http1FramingGuard::new(LIMITS);
    let mut before = 0;
    for piece in cut(text, cuts) {
        if let Err(violation) = guard.check(piece) {
            return Some(before + violation.at);
        }
        before += piece.len();
    }
    None
}

/// The first fault in `text`, and its offset.
fn fault(text: &str) -> Option<(FramingFault, usize)> {
    let checked = Http1FramingGuard::new(LIMITS).check(text.as_bytes());
    checked
        .err()
        .map(|violation| (violation.fault, violation.at))
}

#[test]
fn chunk_extensions_follow_their_grammar() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for good in [
        "5",
        "5;a",
        "5 ; a",
        "5\t;\ta = b",
        "5;a=b;c",
        "5;a=\"b;c\"",
        "5;a=\"\\\"\\\\\" ;d",
        "005;a",
        "5;a=\"\";b=\"é\"",
    ] {
        assert_eq!(
            fault(&format!("{head}{good}\r\nabcde\r\n0;x=y\r\n\r\n")),
            None,
            "{good}"
        );
    }
    for bad in [
        "5;",
        "5 ",
        "5 \t",
        "5;a\0",
        "5;a=\0",
        "5; ",
        "5;;a",
        "5;=b",
        "5;a=",
        "5;a= ",
        "5;a=b c",
        "5;a=\"b",
        "5;a=\"b\"c",
        "5;a=\"\0\"",
        "5;a=\"\\",
        "5;a b",
        "5;a=b ",
        "5a;\u{7f}",
        "5;é",
        "5;a,b",
        "5,a",
        "5\u{b};a",
        "5;a\n",
        ";a",
    ] {
        let text = format!("{head}{bad}\r\nabcde\r\n0\r\n\r\n");
        let found = fault(&text).map(|(fault, _)| fault);
        let expected = [
            Some(FramingFault::ChunkExtension),
            Some(FramingFault::Chunk),
        ];
        assert!(expected.contains(&found), "{bad:?} {found:?}");
    }
}

#[test]
fn a_head_is_refused_at_its_first_byte_over_a_limit() {
    let line = "GET / HTTP/1.1\r\n";
    let long = "x".repeat(5000);
    for (text, expected) in [
        (format!("GET /{long}"), FramingFault::TargetTooLong),
        (format!("GET /?{long}"), FramingFault::TargetTooLong),
        (format!("GET http://a/{long}"), FramingFault::TargetTooLong),
        (format!("{long} / HTTP/1.1"), FramingFault::TargetTooLong),
        (format!("{line}{long}: a"), FramingFault::HeadTooLarge),
        (format!("{line}X: {long}"), FramingFault::HeadTooLarge),
        (format!("{line}X: {long}\u{1}"), FramingFault::HeadTooLarge),
        (
            format!("{line}{}", "X: yyyyyyyyyy\r\n".repeat(21)),
            FramingFault::TooManyFields,
        ),
    ] {
        let (fault, at) = fault(&text).unwrap();
        assert_eq!(fault, expected, "{}", &text[..20]);
        let limit = if fault == FramingFault::TooManyFields {
            text.len() - 15
        } else {
            LIMITS.bytes - 1
        };
        assert_eq!(at, limit);
    }
    let exact = format!(
        "{line}X: {}\r\n\r\n",
        "x".repeat(LIMITS.bytes - line.len() - 7)
    );
    assert_eq!(fault(&exact), None);
    assert_eq!(
        fault(&exact.repeat(3)),
        None,
        "each head is counted separately"
    );
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
    fn valid_requests_pass_however_they_are_split(
        requests in vec(request(), 1..4),
        cuts in vec(any::<prop::sample::Index>(), 0..30),
    ) {
        let text = requests.concat();
        prop_assert_eq!(refused(&text, &cuts), None);
        let mut guard = Http1FramingGuard::new(LIMITS);
        for piece in cut(&text, &cuts) {
            guard.check(piece).unwrap();
        }
        prop_assert_eq!(guard.heads(), requests.len() as u64, "the end of each body is known");
        prop_assert!(!guard.is_in_head());
    }

    #[test]
    fn refusals_do_not_depend_on_how_the_bytes_are_split(
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

    /// So that every refusal comes from the gateway.
    #[test]
    fn hyper_refuses_nothing_that_passes_here(
        requests in vec(request(), 1..3),
        changes in vec((any::<prop::sample::Index>(), prop_oneof![
            any::<u8>(),
            prop::sample::select(&b"\r\n\t \0:/?#%\"<>`{|}^;,@[]HTP1.0\x7f\xc3\xa9\xff"[..]),
        ], 0..3_u8), 0..4),
    ) {
        let mut text = requests.concat();
        for (at, byte, kind) in changes {
            let at = at.index(text.len());
            match kind {
                0 => text[at] = byte,
                1 => text.insert(at, byte),
                _ => drop(text.remove(at)),
            }
        }
        framing_fuzz::http1(&text);
    }

    #[test]
    fn hyper_accepts_every_request_line_that_passes_here(
        method in "[A-Z!#$~a-z0-9]{1,8}",
        target in "[*/h@a-z:.?#]{0,3}[ -~é\u{80}]{0,12}",
        version in "HTTP/1\\.[01]|HTTP/[0-9]\\.[0-9]|[A-Z/.0-9]{0,9}",
    ) {
        framing_fuzz::http1(format!("{method} {target} {version}\r\nHost: a\r\n\r\n").as_bytes());
    }

    #[test]
    fn no_bytes_cause_a_panic(pieces in vec(vec(any::<u8>(), 0..50), 0..20)) {
        let mut guard = Http1FramingGuard::new(LIMITS);
        for piece in pieces {
            if guard.check(&piece).is_err() {
                break;
            }
        }
    }
}
