//! What `fuzz/` calls to parse the responses of an upstream.

use http::Method;

use super::transport::http1::memory_reader::read;

/// The first byte says where the rest is cut in two. The pieces in which a response arrives change
/// nothing, whatever its bytes are.
pub fn response(bytes: &[u8]) {
    let Some((at, bytes)) = bytes.split_first() else {
        return;
    };
    let (first, second) = bytes.split_at(usize::from(*at).min(bytes.len()));
    for method in [Method::GET, Method::HEAD] {
        let whole = read(&[bytes], &method);
        assert_eq!(read(&[first, second], &method), whole);
    }
}
