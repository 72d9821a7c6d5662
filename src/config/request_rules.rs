//! How requests are read, and which of a client's fields are dropped: those by which frameworks
//! replace the method, path, host, client or scheme that the gateway's rules have used.

/// How requests of every client are read.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestRules {
    /// Peers whose forwarding headers are trusted.
    pub trusted_proxies: Vec<AddressBlock>,
    /// Field names with `_` pass; by default they are refused.
    pub allow_underscores: bool,
    /// Override fields that are forwarded, on routes that name none of their own.
    pub allow_fields: AllowedFields,
    /// Bytes per second that a client must send or receive after the first ten seconds; 0: no
    /// minimum.
    pub min_body_rate: u64,
}

/// An address block, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressBlock {
    pub address: std::net::IpAddr,
    pub prefix: u8,
}

/// The query parameter by which Rails, Laravel, Symfony and others replace the method.
pub const METHOD_PARAMETER: &str = "_method";

/// Override fields, and `_method`, that an operator allows upstream. Lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedFields(Vec<Box<str>>);

impl AllowedFields {
    pub fn new(names: Vec<String>) -> Self {
        Self(names.into_iter().map(String::into_boxed_str).collect())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|allowed| **allowed == *name)
    }

    pub fn names(&self) -> &[Box<str>] {
        &self.0
    }
}

/// What an override field replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideField {
    /// The method or the path: no peer may, since the rules were applied to those.
    Request,
    /// Host, client or scheme: passes from a trusted proxy.
    Forwarding,
    /// The client, in a proxy vendor's own field: a trusted proxy may pass on a client's value,
    /// so the field must be allowed by name.
    Client,
}

macro_rules! override_fields {
    ($($kind:ident: $($name:literal)+;)+) => {
        /// The kind of an override field by its lower-case name, `_` written as `-`.
        pub fn override_field(name: &str) -> Option<OverrideField> {
            if !may_override(name) {
                return None;
            }
            match name {
                $($($name)|+ => Some(OverrideField::$kind),)+
                _ if name.starts_with("x-forwarded-") => Some(OverrideField::Forwarding),
                _ => None,
            }
        }

        /// Their names, for suggestions.
        pub const OVERRIDE_FIELDS: &[&str] = &[$($($name),+),+];
    };
}

override_fields! {
    Request:
        "x-http-method-override" "x-http-method" "x-method-override" "x-original-method"
        "x-original-url" "x-rewrite-url" "x-original-uri" "x-original-path" "x-override-url"
        "x-http-path-override" "x-http-destinationurl" "x-envoy-original-path"
        "x-envoy-original-host" "x-forwarded-method" "x-forwarded-uri" "x-forwarded-path";
    Forwarding:
        "forwarded" "x-real-ip";
    Client:
        "x-original-host" "x-host" "x-http-host-override" "x-host-override" "x-forwarded"
        "x-scheme" "x-url-scheme" "x-original-proto" "front-end-https" "cloudfront-forwarded-proto"
        "true-client-ip" "cf-connecting-ip" "cf-connecting-ipv6" "cf-pseudo-ipv4"
        "cf-visitor" "fastly-client-ip" "fly-client-ip" "do-connecting-ip" "x-client-ip"
        "client-ip" "x-cluster-client-ip" "x-originating-ip" "x-remote-ip" "x-remote-addr"
        "x-original-forwarded-for" "x-original-remote-addr" "x-envoy-external-address"
        "x-envoy-peer-metadata" "x-azure-clientip" "x-azure-socketip" "x-appengine-user-ip"
        "x-appengine-remote-addr" "x-nf-client-connection-ip" "x-proxyuser-ip"
        "proxy-client-ip" "wl-proxy-client-ip" "wl-proxy-client-cert" "proxy-remote-user"
        "remote-user" "x-remote-user" "x-remote-group" "x-webauth-user" "x-authenticated-user"
        "client-cert" "client-cert-chain" "x-client-cert" "x-ssl-client-cert"
        "ssl-client-cert" "x-ssl-client-verify" "x-ssl-client-s-dn" "x-amzn-oidc-identity"
        "x-amzn-oidc-data" "x-goog-iap-jwt-assertion" "cloudfront-viewer-address"
        "x-middleware-subrequest" "x-ms-client-principal" "x-ms-client-principal-id"
        "x-ms-client-principal-name" "x-auth-request-user" "x-auth-request-email"
        "x-auth-request-groups" "x-consumer-id" "x-consumer-username" "x-consumer-custom-id"
        "cf-access-authenticated-user-email" "x-goog-authenticated-user-email"
        "x-goog-authenticated-user-id" "remote-email" "remote-groups" "remote-name"
        "tailscale-user-login" "x-authentik-username" "x-arr-clientcert" "x-ssl-cert"
        "ssl-client-s-dn" "ssl-client-verify" "script-name" "x-script-name" "path-info"
        "x-path-info" "x-envoy-internal" "x-tunnel-method" "x-vercel-forwarded-for" "real-ip"
        "akamai-client-ip" "incap-client-ip" "ali-cdn-real-ip";
}

/// Most names differ in their first letters, so the list is rarely searched.
fn may_override(name: &str) -> bool {
    matches!(
        name.as_bytes(),
        [b'x', b'-', ..]
            | [b'f' | b'd' | b'p', ..]
            | [b'c', b'f' | b'l', ..]
            | [b'r', b'e', b'm' | b'a', ..]
            | [b's', b's' | b'c', ..]
            | [b't', b'r' | b'a', ..]
            | [b'a', b'k' | b'l', ..]
            | [b'i', b'n', ..]
            | [b'w', b'l', ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_in_the_form_of_the_look_up() {
        for name in OVERRIDE_FIELDS {
            assert!(name.parse::<http::HeaderName>().is_ok(), "{name}");
            assert!(
                !name.contains(|c: char| c.is_ascii_uppercase() || c == '_'),
                "{name}"
            );
            assert!(override_field(name).is_some(), "{name}");
        }
        assert_eq!(
            override_field("x-forwarded-server"),
            Some(OverrideField::Forwarding)
        );
        assert_eq!(override_field("content-type"), None);
    }
}
