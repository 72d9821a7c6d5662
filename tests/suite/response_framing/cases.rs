//! Responses of every kind that an upstream may send.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use tollgate::upstream::{FramingError, ResponseFraming, ResponseHead, response_framing};

use crate::harness::scripted::{Step, say};

/// Longer than a body that the gate reads as a whole.
pub(super) const CONTENT: usize = 40_000;

/// The part of the response after its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyBytes {
    Nothing,
    /// This many bytes of the content, unchunked.
    Content(usize),
    /// All of the content in two chunks, and the last chunk.
    Chunks,
    /// Only the first chunk.
    OneChunk,
    /// Both chunks without the last chunk.
    NoLastChunk,
    /// Bytes that are not a chunk.
    BadChunk,
    /// The first chunk, then bytes that are not a chunk.
    BadSecondChunk,
}

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) version: &'static str,
    pub(super) status: u16,
    pub(super) lengths: &'static [&'static str],
    pub(super) codings: &'static [&'static str],
    pub(super) sends: BodyBytes,
    /// A 103 comes first.
    pub(super) has_hints: bool,
    pub(super) end: Step,
}

impl Case {
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for length in self.lengths {
            headers.append(CONTENT_LENGTH, HeaderValue::from_static(length));
        }
        for coding in self.codings {
            headers.append(TRANSFER_ENCODING, HeaderValue::from_static(coding));
        }
        headers
    }

    pub(super) fn framing(&self, method: &Method) -> Result<ResponseFraming, FramingError> {
        response_framing(ResponseHead {
            version: match self.version {
                "1.0" => Version::HTTP_10,
                _ => Version::HTTP_11,
            },
            status: StatusCode::from_u16(self.status).unwrap(),
            request_method: method,
            headers: &self.headers(),
        })
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let mut head = match self.has_hints {
            true => "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_owned(),
            false => String::new(),
        };
        head += &format!("HTTP/{} {} X\r\n", self.version, self.status);
        for length in self.lengths {
            head += &format!("Content-Length: {length}\r\n");
        }
        for coding in self.codings {
            head += &format!("Transfer-Encoding: {coding}\r\n");
        }
        let chunk = |length: usize| format!("{length:x}\r\n{}\r\n", "x".repeat(length));
        let body = match self.sends {
            BodyBytes::Nothing => String::new(),
            BodyBytes::Content(length) => "x".repeat(length),
            BodyBytes::Chunks => chunk(CONTENT / 2) + &chunk(CONTENT / 2) + "0\r\n\r\n",
            BodyBytes::OneChunk => chunk(CONTENT / 2),
            BodyBytes::NoLastChunk => chunk(CONTENT / 2) + &chunk(CONTENT / 2),
            BodyBytes::BadChunk => "g\r\nxx\r\n".to_owned(),
            BodyBytes::BadSecondChunk => chunk(CONTENT / 2) + "-1\r\n",
        };
        let mut steps = vec![say(&(head + "\r\n" + &body)), self.end.clone()];
        if self.sends != BodyBytes::Nothing {
            // A pause, so that the bytes are read before the end.
            steps.insert(1, Step::Pause(Duration::from_millis(20)));
        }
        steps
    }

    pub(super) fn is_orderly(&self) -> bool {
        matches!(self.end, Step::Close)
    }
}

fn case(
    lengths: &'static [&'static str],
    codings: &'static [&'static str],
    sends: BodyBytes,
) -> Case {
    Case {
        version: "1.1",
        status: 200,
        lengths,
        codings,
        sends,
        has_hints: false,
        end: Step::Close,
    }
}

/// Cases for a GET.
pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for version in ["1.1", "1.0"] {
        cases.extend(of_length(version));
        cases.extend(coded(version));
    }
    cases.extend(broken());
    cases.extend(without_content());
    let hints: Vec<Case> = cases.iter().step_by(7).cloned().collect();
    cases.extend(hints.into_iter().map(|case| Case {
        has_hints: true,
        ..case
    }));
    cases
}

fn of_length(version: &'static str) -> Vec<Case> {
    let mut cases = Vec::new();
    for (lengths, sent) in [
        (&["40000"][..], CONTENT),
        (&["40000"], CONTENT + 5),
        (&["40000"], 100),
        (&["40000"], 0),
        (&["12"], 12),
        (&["12"], 0),
        (&["0"], 0),
        (&["40000", "40000"], CONTENT),
        (&["40000, 40000"], CONTENT),
        (&["040000"], CONTENT),
        (&["40000", "12"], CONTENT),
        (&["12, 40000"], CONTENT),
        (&["+12"], 12),
        (&["12 "], 12),
        (&["1e4"], 12),
        (&[], CONTENT),
        (&[], 12),
        (&[], 0),
    ] {
        let sends = match sent {
            0 => BodyBytes::Nothing,
            sent => BodyBytes::Content(sent),
        };
        cases.push(Case {
            version,
            ..case(lengths, &[], sends)
        });
    }
    cases
}

fn coded(version: &'static str) -> Vec<Case> {
    let mut cases = Vec::new();
    for codings in [
        &["chunked"][..],
        &["ChunKed"],
        &["gzip, chunked"],
        &["gzip", "chunked"],
        &["chunked, gzip"],
        &["chunked", "chunked"],
        &["gzip"],
        &["identity"],
        &["deflate"],
        &["chunked;a=b"],
    ] {
        for lengths in [&[][..], &["1"], &["1", "2"]] {
            cases.push(Case {
                version,
                ..case(lengths, codings, BodyBytes::Chunks)
            });
        }
    }
    cases
}

/// Cases that end early.
fn broken() -> Vec<Case> {
    let mut cases = Vec::new();
    for sends in [
        BodyBytes::Nothing,
        BodyBytes::OneChunk,
        BodyBytes::NoLastChunk,
        BodyBytes::BadChunk,
        BodyBytes::BadSecondChunk,
    ] {
        cases.push(case(&[], &["chunked"], sends));
    }
    let resets: Vec<Case> = [
        case(&[], &["chunked"], BodyBytes::Nothing),
        case(&[], &["chunked"], BodyBytes::OneChunk),
        case(&["40000"], &[], BodyBytes::Content(100)),
        case(&["40000"], &[], BodyBytes::Nothing),
        case(&[], &[], BodyBytes::Content(CONTENT)),
        case(&[], &[], BodyBytes::Nothing),
    ]
    .into_iter()
    .map(|case| Case {
        end: Step::Reset,
        ..case
    })
    .collect();
    let old = resets.clone().into_iter().map(|case| Case {
        version: "1.0",
        ..case
    });
    cases.extend(old.filter(|case| case.codings.is_empty()));
    cases.extend(resets);
    cases
}

fn without_content() -> Vec<Case> {
    let mut cases = Vec::new();
    for status in [204, 304] {
        for (lengths, codings) in [
            (&[][..], &[][..]),
            (&["0"], &[]),
            (&["12"], &[]),
            (&["12", "13"], &[]),
            (&[], &["chunked"]),
            (&["12"], &["chunked"]),
        ] {
            cases.push(Case {
                status,
                ..case(lengths, codings, BodyBytes::Nothing)
            });
        }
    }
    cases
}
