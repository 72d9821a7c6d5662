//! The node of a path, the access it requires, and the origin of its responses.

use http::Method;

use super::node_reply::Origin;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// `GET /`: the admin web page, probed by balancers.
    Page,
    Users,
    Account,
    Settings,
    Contacts,
    Messages,
    Media,
    Stickerpacks,
    Groups,
    Certificates,
    Health,
    Stats,
    Metrics,
    Support,
    Services,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeAccess {
    Open,
    Token,
    Admin,
    /// A token or the API key.
    Monitoring,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct NodeRoute {
    pub node: Node,
    pub access: NodeAccess,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RouteError {
    Path,
    Method,
}

/// The decoded segments of a path; a trailing slash makes no difference.
pub(super) fn segments(path: &str) -> Vec<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Vec::new();
    }
    path.split('/').map(decode).collect()
}

fn decode(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let pair = after.first_chunk::<2>();
        let pair = pair.and_then(|pair| std::str::from_utf8(pair).ok());
        match pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn find(method: &Method, path: &[&str]) -> Result<NodeRoute, RouteError> {
    let (node, methods) = match path {
        [] => (Node::Page, "GET"),
        ["metrics"] => (Node::Metrics, "GET"),
        ["v1", "settings", rest @ ..] => (Node::Settings, settings(rest).ok_or(RouteError::Path)?),
        ["v1", rest @ ..] => below_v1(rest).ok_or(RouteError::Path)?,
        _ => return Err(RouteError::Path),
    };
    let requested = if method == Method::HEAD {
        "GET"
    } else {
        method.as_str()
    };
    if !methods.split(' ').any(|known| known == requested) {
        return Err(RouteError::Method);
    }
    Ok(NodeRoute {
        node,
        access: access(node, requested, path),
        origin: origin(node),
    })
}

fn below_v1(path: &[&str]) -> Option<(Node, &'static str)> {
    Some(match path {
        ["users"] | ["users", "login" | "logout"] => (Node::Users, "POST"),
        ["users", _] => (Node::Users, "GET PUT DELETE"),
        ["account"] => (Node::Account, "POST DELETE"),
        ["account", "verify"] => (Node::Account, "POST"),
        ["account", "shards"] => (Node::Account, "GET POST"),
        ["contacts"] => (Node::Contacts, "POST"),
        ["contacts", _, "identity"] => (Node::Contacts, "GET PUT"),
        ["messages"] => (Node::Messages, "POST"),
        ["messages", _] => (Node::Messages, "PUT"),
        ["media"] => (Node::Media, "POST"),
        ["media", _] => (Node::Media, "GET DELETE"),
        ["stickerpacks"] | ["stickerpacks", _, "stickers"] => (Node::Stickerpacks, "GET POST"),
        ["stickerpacks", _] | ["stickerpacks", _, "stickers", _] => {
            (Node::Stickerpacks, "GET PATCH DELETE")
        }
        ["groups"] => (Node::Groups, "GET POST"),
        ["groups", _] => (Node::Groups, "GET PUT"),
        ["groups", _, "admins"] => (Node::Groups, "PATCH DELETE"),
        ["groups", _, "icon"] => (Node::Groups, "GET POST DELETE"),
        ["groups", _, "invite"] => (Node::Groups, "GET DELETE"),
        ["groups", _, "leave"] => (Node::Groups, "POST"),
        ["groups", _, "participants"] => (Node::Groups, "DELETE"),
        ["certificates", "external"] => (Node::Certificates, "POST"),
        ["certificates", "external", "ca"] => (Node::Certificates, "GET"),
        ["certificates", "webhooks", "ca"] => (Node::Certificates, "GET POST DELETE"),
        ["health"] => (Node::Health, "GET"),
        ["stats", "app" | "db"] | ["stats", "app" | "db", "internal"] => (Node::Stats, "GET"),
        ["support"] => (Node::Support, "GET"),
        ["services", "message", "gc"] => (Node::Services, "PUT"),
        _ => return None,
    })
}

fn settings(path: &[&str]) -> Option<&'static str> {
    Some(match path {
        ["application"] => "GET PATCH DELETE",
        ["application", "media", "providers"] => "GET POST",
        ["application", "media", "providers", _] => "DELETE",
        ["backup" | "restore"] => "POST",
        ["business", "profile" | "compliance_info"] => "GET POST",
        ["profile", "about"] => "GET PATCH",
        ["profile", "photo"] => "GET POST DELETE",
        ["account", "two-step"] => "POST DELETE",
        _ => return None,
    })
}

fn access(node: Node, method: &str, path: &[&str]) -> NodeAccess {
    match (node, path) {
        (Node::Page, _) | (Node::Users, ["v1", "users", "login"]) => NodeAccess::Open,
        (Node::Users, ["v1", "users", "logout"]) => NodeAccess::Token,
        (Node::Users, _) if method == "GET" => NodeAccess::Token,
        (Node::Users, _) => NodeAccess::Admin,
        (Node::Certificates, _) if method != "GET" => NodeAccess::Admin,
        (Node::Settings, ["v1", "settings", "profile", ..])
        | (Node::Settings, ["v1", "settings", "business", "profile"]) => NodeAccess::Admin,
        (Node::Health | Node::Stats | Node::Metrics, _) => NodeAccess::Monitoring,
        _ => NodeAccess::Token,
    }
}

fn origin(node: Node) -> Origin {
    match node {
        Node::Page | Node::Users | Node::Certificates | Node::Metrics => Origin::Webapp,
        _ => Origin::Coreapp,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_slash_makes_no_difference_and_a_name_is_decoded() {
        assert_eq!(segments("/v1/messages/"), ["v1", "messages"]);
        assert_eq!(segments("/v1/messages"), ["v1", "messages"]);
        assert!(segments("/").is_empty());
        assert_eq!(segments("/v1/users/a%40b%2"), ["v1", "users", "a@b%2"]);
    }

    #[test]
    fn an_unknown_path_differs_from_a_wrong_method() {
        assert_eq!(
            find(&Method::GET, &["v1", "nothing"]).unwrap_err(),
            RouteError::Path
        );
        assert_eq!(
            find(&Method::GET, &["health"]).unwrap_err(),
            RouteError::Path
        );
        assert_eq!(
            find(&Method::GET, &["v1", "messages"]).unwrap_err(),
            RouteError::Method
        );
        assert!(find(&Method::HEAD, &["v1", "media", "x"]).is_ok());
    }

    #[test]
    fn only_the_monitoring_nodes_take_the_api_key() {
        let access = |path: &[&str]| find(&Method::GET, path).unwrap().access;
        for path in [
            &["metrics"][..],
            &["v1", "health"],
            &["v1", "stats", "app"],
            &["v1", "stats", "db", "internal"],
        ] {
            assert_eq!(access(path), NodeAccess::Monitoring, "{path:?}");
        }
        assert_eq!(access(&["v1", "support"]), NodeAccess::Token);
    }
}
