//! User names in paths: every path to a name that can be created leads back to that name.

use std::sync::Arc;

use http::Uri;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;

use super::own_users::user_in;
use crate::config::{ProfileRouting, Target, UsersCall, shipped_routes};
use crate::pipeline::route_table::{RouteTable, RouteUpstream};
use crate::pipeline::stages::request_target;
use crate::profiles::{Profile, check_name};

/// The fewest escapes that RFC 3986 allows in a segment.
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'/')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// The most that clients escape: all but the unreserved characters.
const ALL: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

fn leads_back(name: &str) {
    let routing = ProfileRouting::everywhere("main".into());
    let shipped = shipped_routes(Profile::DEFAULT, &[routing]).into_iter();
    let shipped: Vec<_> = shipped.map(Arc::new).collect();
    let show = Target::UsersNode(UsersCall::Show);
    let show = shipped.iter().find(|route| route.target == show).unwrap();
    let routes = RouteTable::new(&shipped, |_| RouteUpstream::default());
    for set in [SEGMENT, ALL] {
        let escaped = utf8_percent_encode(name, set).to_string();
        let text = show.path.to_string().replace("{name}", &escaped);
        let uri: Uri = text.parse().unwrap();
        let path = request_target::checked(&uri).unwrap_or_else(|why| panic!("{text}: {why:?}"));
        assert_eq!(user_in(path).unwrap(), name);
        for (method, call) in [
            (http::Method::GET, UsersCall::Show),
            (http::Method::PUT, UsersCall::Change),
            (http::Method::DELETE, UsersCall::Delete),
        ] {
            let route = routes.find("gate", path, &method).unwrap();
            assert_eq!(route.target, Target::UsersNode(call), "{method} {text}");
        }
    }
}

#[test]
fn names_seen_in_use_lead_back_to_their_users() {
    for name in [
        "100%sure", "login", "logout", "....", "...;", "a+b c", "größe", "a;b=c", "%%%%", "a#b?",
    ] {
        check_name(name).unwrap();
        leads_back(name);
    }
}

proptest! {
    #[test]
    fn every_name_that_can_be_created_leads_back_to_its_user(
        name in "[a-f0-9%.;:/\\\\u+ ?#&='\"<>ö名~]{4,12}",
        any in "\\PC{4,32}",
    ) {
        for name in [name, any] {
            if check_name(&name).is_ok() {
                leads_back(&name);
            }
        }
    }
}
