//! The table of responses in `docs/FRAMING.md`, line by line.

use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use crate::upstream::transport::framing::{
    BodyFraming as Body, FramingError as No, LengthField as Field, ResponseFraming, ResponseHead,
    reframe, response_framing,
};

const V10: Version = Version::HTTP_10;
const V11: Version = Version::HTTP_11;

fn headers(lengths: &[&str], codings: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for length in lengths {
        headers.append(CONTENT_LENGTH, HeaderValue::from_str(length).unwrap());
    }
    for coding in codings {
        headers.append(TRANSFER_ENCODING, HeaderValue::from_str(coding).unwrap());
    }
    headers
}

fn framed(
    version: Version,
    status: u16,
    method: &Method,
    headers: &HeaderMap,
) -> Result<ResponseFraming, No> {
    response_framing(ResponseHead {
        version,
        status: StatusCode::from_u16(status).unwrap(),
        request_method: method,
        headers,
    })
}

/// The framing of a 200 response to a GET.
fn ok(version: Version, lengths: &[&str], codings: &[&str]) -> Result<ResponseFraming, No> {
    framed(version, 200, &Method::GET, &headers(lengths, codings))
}

fn framing(body: Body, length_field: Field, is_last: bool) -> Result<ResponseFraming, No> {
    Ok(ResponseFraming {
        body,
        length_field,
        is_last,
    })
}

#[test]
fn a_content_length_is_one_number() {
    for (lengths, expected) in [
        (&["5"][..], framing(Body::Length(5), Field::Keep, false)),
        (&["0"], framing(Body::Length(0), Field::Keep, false)),
        (
            &["5", "5"],
            framing(Body::Length(5), Field::Replace(5), false),
        ),
        (
            &["5, 5"],
            framing(Body::Length(5), Field::Replace(5), false),
        ),
        (
            &["5,5", "5"],
            framing(Body::Length(5), Field::Replace(5), false),
        ),
        (&["05"], framing(Body::Length(5), Field::Replace(5), false)),
        (&["00"], framing(Body::Length(0), Field::Replace(0), false)),
        (
            &["5", "05"],
            framing(Body::Length(5), Field::Replace(5), false),
        ),
        (&["5", "6"], Err(No::ContentLength)),
        (&["5, 6"], Err(No::ContentLength)),
        (&["5,"], Err(No::ContentLength)),
        (&["", "5"], Err(No::ContentLength)),
        (&["+5"], Err(No::ContentLength)),
        (&["-5"], Err(No::ContentLength)),
        (&["5 5"], Err(No::ContentLength)),
        (&["0x5"], Err(No::ContentLength)),
        (&["5.0"], Err(No::ContentLength)),
        (&["five"], Err(No::ContentLength)),
        (&[""], Err(No::ContentLength)),
        (&["18446744073709551616"], Err(No::ContentLength)),
    ] {
        assert_eq!(ok(V11, lengths, &[]), expected, "{lengths:?}");
    }
}

#[test]
fn chunked_is_the_only_coding_and_overrides_a_content_length() {
    let chunked = |is_last| framing(Body::Chunked, Field::Remove, is_last);
    for (lengths, codings, expected) in [
        (&[][..], &["chunked"][..], chunked(false)),
        (&[], &["Chunked"], chunked(false)),
        (&["1"], &["chunked"], chunked(true)),
        (&["1", "1"], &["chunked"], chunked(true)),
        (&["1", "2"], &["chunked"], Err(No::ContentLength)),
        (&["x"], &["chunked"], Err(No::ContentLength)),
        (&[], &["gzip, chunked"], Err(No::TransferCoding)),
        (&[], &["gzip", "chunked"], Err(No::TransferCoding)),
        (&[], &["chunked", "gzip"], Err(No::TransferCoding)),
        (&[], &["chunked, gzip"], Err(No::TransferCoding)),
        (&[], &["chunked", "chunked"], Err(No::TransferCoding)),
        (&[], &["chunked, chunked"], Err(No::TransferCoding)),
        (&[], &["chunked;q=1"], Err(No::TransferCoding)),
        (&[], &["chunked,"], Err(No::TransferCoding)),
        (&[], &[", chunked"], Err(No::TransferCoding)),
        (&[], &["xchunked"], Err(No::TransferCoding)),
        (&[], &["\"chunked\""], Err(No::TransferCoding)),
        (&[], &["gzip"], Err(No::TransferCoding)),
        (&[], &["identity"], Err(No::TransferCoding)),
        (&["2"], &["identity"], Err(No::TransferCoding)),
        (&[], &["identity, chunked"], Err(No::TransferCoding)),
        (&[], &[""], Err(No::TransferCoding)),
    ] {
        assert_eq!(
            ok(V11, lengths, codings),
            expected,
            "{lengths:?} {codings:?}"
        );
    }
}

#[test]
fn http_1_0_bodies_end_by_length_or_with_the_connection() {
    let until_close = |is_last| framing(Body::UntilClose, Field::Keep, is_last);
    assert_eq!(ok(V10, &[], &[]), until_close(true));
    assert_eq!(ok(V11, &[], &[]), until_close(true));
    assert_eq!(
        ok(V10, &["5"], &[]),
        framing(Body::Length(5), Field::Keep, true)
    );
    assert_eq!(ok(V10, &["5", "6"], &[]), Err(No::ContentLength));
    let coded = Err(No::TransferEncodingInHttp10);
    assert_eq!(ok(V10, &[], &["chunked"]), coded);
    assert_eq!(ok(V10, &["2"], &["identity"]), coded);
    for version in [Version::HTTP_09, Version::HTTP_2, Version::HTTP_3] {
        assert_eq!(ok(version, &["5"], &[]), Err(No::Version));
    }
}

#[test]
fn a_protocol_switch_is_refused() {
    for version in [V10, V11] {
        for fields in [
            headers(&[], &[]),
            headers(&["0"], &[]),
            headers(&[], &["chunked"]),
        ] {
            let framing = framed(version, 101, &Method::GET, &fields);
            assert_eq!(framing, Err(No::SwitchingProtocols), "{fields:?}");
        }
    }
}

#[test]
fn a_bodiless_response_has_no_body_whatever_its_fields_say() {
    let (get, head) = (Method::GET, Method::HEAD);
    let empty = |field, is_last| framing(Body::Empty, field, is_last);
    for (status, method, lengths, codings, expected) in [
        (204, &get, &[][..], &[][..], empty(Field::Remove, false)),
        (204, &get, &["0"], &[], empty(Field::Remove, false)),
        (204, &get, &["5"], &[], empty(Field::Remove, true)),
        (204, &get, &[], &["chunked"], empty(Field::Remove, true)),
        (204, &head, &["5"], &[], empty(Field::Remove, true)),
        (204, &get, &["x"], &[], Err(No::ContentLength)),
        (304, &get, &["1234"], &[], empty(Field::Remove, false)),
        (
            304,
            &get,
            &[],
            &["gzip, chunked"],
            empty(Field::Remove, false),
        ),
        (304, &get, &["5", "6"], &[], Err(No::ContentLength)),
        (200, &head, &["1234"], &[], empty(Field::Keep, false)),
        (
            200,
            &head,
            &["5", "5"],
            &[],
            empty(Field::Replace(5), false),
        ),
        (
            200,
            &head,
            &["5"],
            &["chunked"],
            empty(Field::Remove, false),
        ),
        (200, &head, &[], &[], empty(Field::Remove, false)),
        (404, &head, &["5"], &[], empty(Field::Keep, false)),
    ] {
        let headers = headers(lengths, codings);
        let framing = framed(V11, status, method, &headers);
        assert_eq!(framing, expected, "{status} {method} {headers:?}");
        let old = framed(V10, status, method, &headers);
        assert!(old.is_err() || old.is_ok_and(|framing| framing.is_last));
    }
    // These two may have a body (RFC 9110 15.3.6 requires an empty one).
    for status in [205, 500] {
        let framing = framed(V11, status, &get, &headers(&["5"], &[]));
        assert_eq!(framing.unwrap().body, Body::Length(5));
    }
}

#[test]
fn the_forwarded_head_has_the_gateways_version_and_at_most_one_length() {
    for (lengths, codings, expected) in [
        (&["5"][..], &[][..], &["5"][..]),
        (&["5, 5", "05"], &[], &["5"]),
        (&["5", "5"], &["chunked"], &[]),
        (&[], &[], &[]),
    ] {
        let mut response = Response::new(());
        *response.headers_mut() = headers(lengths, codings);
        reframe(&mut response, &Method::GET).unwrap();
        let left: Vec<_> = response.headers().get_all(CONTENT_LENGTH).iter().collect();
        assert_eq!(left, expected, "{lengths:?} {codings:?}");
    }
    let mut old = Response::new(());
    *old.version_mut() = V10;
    reframe(&mut old, &Method::GET).unwrap();
    assert_eq!(old.version(), V11);
}
