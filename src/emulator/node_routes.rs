//! Which node a path belongs to, what it demands, and who answers there.

use http::Method;

use super::node_reply::Origin;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Node {
    /// `GET /`: the admin web page that balancers probe.
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
pub(super) enum Need {
    Open,
    Token,
    Admin,
    /// A token or the API key.
    Monitoring,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub node: Node,
    pub need: Need,
    pub origin: Origin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    Path,
    Method,
}

/// Segments, decoded; a slash at the end makes no difference.
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

pub(super) fn find(method: &Method, path: &[&str]) -> Result<Place, Lost> {
    let (node, methods) = match path {
        [] => (Node::Page, "GET"),
        ["metrics"] => (Node::Metrics, "GET"),
        ["v1", "settings", rest @ ..] => (Node::Settings, settings(rest).ok_or(Lost::Path)?),
        ["v1", rest @ ..] => below_v1(rest).ok_or(Lost::Path)?,
        _ => return Err(Lost::Path),
    };
    let asked = if method == Method::HEAD {
        "GET"
    } else {
        method.as_str()
    };
    if !methods.split(' ').any(|known| known == asked) {
        return Err(Lost::Method);
    }
    Ok(Place {
        node,
        need: need(node, asked, path),
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

fn need(node: Node, method: &str, path: &[&str]) -> Need {
    match (node, path) {
        (Node::Page, _) | (Node::Users, ["v1", "users", "login"]) => Need::Open,
        (Node::Users, ["v1", "users", "logout"]) => Need::Token,
        (Node::Users, _) if method == "GET" => Need::Token,
        (Node::Users, _) => Need::Admin,
        (Node::Certificates, _) if method != "GET" => Need::Admin,
        (Node::Settings, ["v1", "settings", "profile", ..])
        | (Node::Settings, ["v1", "settings", "business", "profile"]) => Need::Admin,
        (Node::Health | Node::Stats | Node::Metrics, _) => Need::Monitoring,
        _ => Need::Token,
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
    fn a_slash_at_the_end_makes_no_difference_and_a_name_is_decoded() {
        assert_eq!(segments("/v1/messages/"), ["v1", "messages"]);
        assert_eq!(segments("/v1/messages"), ["v1", "messages"]);
        assert!(segments("/").is_empty());
        assert_eq!(segments("/v1/users/a%40b%2"), ["v1", "users", "a@b%2"]);
    }

    #[test]
    fn a_path_is_told_from_a_method() {
        assert_eq!(
            find(&Method::GET, &["v1", "nothing"]).unwrap_err(),
            Lost::Path
        );
        assert_eq!(find(&Method::GET, &["health"]).unwrap_err(), Lost::Path);
        assert_eq!(
            find(&Method::GET, &["v1", "messages"]).unwrap_err(),
            Lost::Method
        );
        assert!(find(&Method::HEAD, &["v1", "media", "x"]).is_ok());
    }

    #[test]
    fn only_the_monitoring_nodes_take_the_api_key() {
        let need = |path: &[&str]| find(&Method::GET, path).unwrap().need;
        for path in [
            &["metrics"][..],
            &["v1", "health"],
            &["v1", "stats", "app"],
            &["v1", "stats", "db", "internal"],
        ] {
            assert_eq!(need(path), Need::Monitoring, "{path:?}");
        }
        assert_eq!(need(&["v1", "support"]), Need::Token);
    }
}
