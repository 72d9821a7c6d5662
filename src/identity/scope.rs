//! Which requests an API key authorizes.

use http::Method;

use crate::config::{ApiKey, PathPattern};

/// Whether `key` authorizes this request. A key without paths is for the monitoring
/// routes only (protocol sheet, section 2). GET covers HEAD.
pub fn permits(key: &ApiKey, route_is_monitoring: bool, method: &Method, path: &str) -> bool {
    let for_path = if key.paths.is_empty() {
        route_is_monitoring
    } else {
        key.paths.iter().any(|pattern| matches(pattern, path))
    };
    for_path && permits_method(key, method)
}

fn permits_method(key: &ApiKey, method: &Method) -> bool {
    key.methods.is_empty()
        || key.methods.contains(method)
        || (method == Method::HEAD && key.methods.contains(&Method::GET))
}

/// Whether `path` (without its query, as it is forwarded) matches the segments of `pattern`.
pub fn matches(pattern: &PathPattern, path: &str) -> bool {
    pattern.matches(path.split('/').filter(|segment| !segment.is_empty()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Segment;
    use crate::identity::key_set::tests::key;

    fn literal(text: &str) -> Segment {
        Segment::Literal(text.into())
    }

    #[test]
    fn a_pattern_takes_its_segments_and_a_trailing_slash_makes_no_difference() {
        let one = PathPattern(Arc::from([
            literal("v1"),
            literal("media"),
            Segment::One("id".into()),
        ]));
        for (path, expected) in [
            ("/v1/media/7", true),
            ("/v1/media/7/", true),
            ("/v1/media", false),
            ("/v1/media/", false),
            ("/v1/media/7/8", false),
            ("/v1/medias/7", false),
            ("/V1/media/7", false),
            ("/", false),
        ] {
            assert_eq!(matches(&one, path), expected, "{path}");
        }
        let rest = PathPattern(Arc::from([literal("v1"), Segment::Rest]));
        for (path, expected) in [
            ("/v1", true),
            ("/v1/a/b", true),
            ("/v2/a", false),
            ("/", false),
        ] {
            assert_eq!(matches(&rest, path), expected, "{path}");
        }
        assert!(matches(&PathPattern(Arc::default()), "/"));
    }

    #[test]
    fn a_key_without_paths_is_for_the_monitoring_nodes_only() {
        let key = key("prometheus", "012345678901");
        assert!(permits(&key, true, &Method::GET, "/metrics"));
        assert!(!permits(&key, false, &Method::GET, "/v1/messages"));
    }

    #[test]
    fn a_key_with_paths_and_methods_is_for_these_only() {
        let mut key = key("sender", "012345678901");
        key.paths = vec![PathPattern(Arc::from([literal("v1"), literal("messages")]))];
        key.methods = vec![Method::GET];
        assert!(permits(&key, false, &Method::GET, "/v1/messages/"));
        assert!(permits(&key, false, &Method::HEAD, "/v1/messages"));
        assert!(!permits(&key, false, &Method::POST, "/v1/messages"));
        assert!(!permits(&key, true, &Method::GET, "/metrics"));
    }
}
