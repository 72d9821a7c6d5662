//! Every kind of response to every kind of client, compared with the table
//! (`response_framing`): no incomplete response looks complete.

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use http::Method;
use tollgate::upstream::{BodyFraming, LengthField};

use super::cases::{BodyBytes, CONTENT, Case, cases};
use crate::harness::received::{ClientProtocol, Received, send_request};
use crate::harness::scripted::{ScriptedUpstream, not_found};

impl Case {
    /// Status, length of the content, and whether the client sees its end.
    fn expected(&self, method: &Method) -> Expected {
        let Ok(framing) = self.framing(method) else {
            return Expected::refused();
        };
        let whole = |length| Expected::passed(self.status, length, true);
        let broken = || Expected::passed(self.status, CONTENT, false);
        match (framing.body, self.sends) {
            (BodyFraming::Empty, _) => whole(0),
            (BodyFraming::Length(length), BodyBytes::Content(sent)) => {
                let length = usize::try_from(length).unwrap();
                match sent {
                    _ if sent >= length => whole(length),
                    0 => Expected::refused(),
                    _ => broken(),
                }
            }
            (BodyFraming::Length(0), _) => whole(0),
            (BodyFraming::Length(_), BodyBytes::Nothing) => Expected::refused(),
            (BodyFraming::Chunked, BodyBytes::Chunks) => whole(CONTENT),
            (BodyFraming::Chunked, BodyBytes::Nothing | BodyBytes::BadChunk) => Expected::refused(),
            (BodyFraming::Chunked, _) => broken(),
            (BodyFraming::UntilClose, BodyBytes::Nothing) if !self.is_orderly() => {
                Expected::refused()
            }
            (BodyFraming::UntilClose, BodyBytes::Nothing) => whole(0),
            (BodyFraming::UntilClose, BodyBytes::Content(sent)) if self.is_orderly() => whole(sent),
            (BodyFraming::UntilClose, _) => broken(),
            (BodyFraming::Length(_), _) => unreachable!("not made"),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Expected {
    status: u16,
    /// Of a broken response: at most this length.
    length: usize,
    is_whole: bool,
    is_refused: bool,
}

impl Expected {
    fn refused() -> Self {
        Self {
            status: 502,
            length: 0,
            is_whole: true,
            is_refused: true,
        }
    }

    fn passed(status: u16, length: usize, is_whole: bool) -> Self {
        Self {
            status,
            length,
            is_whole,
            is_refused: false,
        }
    }

    fn fits(&self, received: &Received) -> bool {
        let length = received.body.len();
        let fits = self.is_refused
            || if self.is_whole {
                length == self.length
            } else {
                0 < length && length <= self.length
            };
        (received.status, received.is_whole) == (self.status, self.is_whole) && fits
    }
}

fn fields_fit(received: &Received, case: &Case, method: &Method) -> bool {
    let Ok(framing) = case.framing(method) else {
        return true;
    };
    let given = received.all("content-length");
    match (framing.length_field, framing.body) {
        (LengthField::Replace(length), _) => given == [length.to_string()],
        (LengthField::Keep, _) if !case.lengths.is_empty() => given == case.lengths,
        // The gate knows the length of a body that it has read as a whole.
        _ => given.is_empty() || received.body.len().to_string() == given.join("|"),
    }
}

async fn compare(
    is_tls: bool,
    method: Method,
    clients: &[ClientProtocol],
    cases: Vec<Case>,
) -> usize {
    let cases = Arc::new(cases);
    let scripted = Arc::clone(&cases);
    let script = move |head: &str| {
        let target = head.split(' ').nth(1).unwrap();
        let number = target.strip_prefix("/case/").map(str::parse::<usize>);
        match number {
            Some(number) => scripted[number.unwrap()].steps(),
            // The gate's own probe.
            None => vec![not_found()],
        }
    };
    let upstream = ScriptedUpstream::start(script, is_tls).await;
    let gateway = upstream.gate("", "").await;
    let all: Vec<(usize, ClientProtocol)> = clients
        .iter()
        .flat_map(|how| (0..cases.len()).map(|number| (number, *how)))
        .collect();
    let count = all.len();
    let wrong: Vec<String> = stream::iter(all)
        .map(|(number, how)| {
            let (cases, gateway, method) = (&cases, &gateway, &method);
            async move {
                let case = &cases[number];
                let expected = case.expected(method);
                let is_right = |received: &Received| {
                    expected.fits(received)
                        && (expected.is_refused || fields_fit(received, case, method))
                        && (how == ClientProtocol::Http10 || received.version != "HTTP/1.0")
                };
                let path = format!("/case/{number}");
                let mut received = send_request(gateway, how, method, &path).await;
                if expected.is_refused && received.body.is_empty() {
                    // On a busy machine the end may come after the head was sent.
                    received = send_request(gateway, how, method, &path).await;
                }
                let fits = is_right(&received);
                let body = received.body.len();
                (!fits).then(|| {
                    format!(
                        "{how:?} {method} {case:?}\n  expected {expected:?}\n  got {} {:?} {body} \
                         whole {}",
                        received.status, received.fields, received.is_whole
                    )
                })
            }
        })
        .buffer_unordered(12)
        .filter_map(async |wrong| wrong)
        .collect()
        .await;
    assert!(
        wrong.is_empty(),
        "{} of {count}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn every_response_of_an_upstream_is_passed_on_as_the_table_says() {
    let clients = [
        ClientProtocol::Http10,
        ClientProtocol::Http11,
        ClientProtocol::Http2,
    ];
    let cases = cases();
    let count = compare(false, Method::GET, &clients, cases.clone()).await;
    let some = |step| cases.iter().step_by(step).cloned().collect::<Vec<_>>();
    let heads: Vec<Case> = some(2)
        .into_iter()
        .map(|case| Case {
            sends: BodyBytes::Nothing,
            ..case
        })
        .collect();
    let count = count + compare(false, Method::HEAD, &clients, heads).await;
    let clients = [ClientProtocol::Tls11, ClientProtocol::Http2];
    let count = count + compare(true, Method::GET, &clients, some(3)).await;
    assert!(count >= 300, "only {count} cases");
}
