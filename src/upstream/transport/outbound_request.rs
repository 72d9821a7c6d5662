//! A request as it is written to an upstream. It borrows what the client sent and what the gateway
//! adds; nothing is copied before it is written into the buffer of a connection.

use std::borrow::Cow;

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// A request for an upstream.
#[derive(Debug)]
pub struct OutboundRequest<'a, B> {
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    pub fields: OutboundFields<'a>,
    pub body: B,
}

impl<'a, B> OutboundRequest<'a, B> {
    /// The request with this head. Its URI needs no more than path and query.
    pub fn of(head: &'a Parts, body: B) -> Self {
        Self {
            method: &head.method,
            target: head
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str()),
            fields: OutboundFields::of(&head.headers),
            body,
        }
    }
}

/// The fields of a request, in the order in which they are written. A list and not a map: it is built
/// for one request, has few fields, and is searched for few.
#[derive(Default)]
pub struct OutboundFields<'a>(Vec<OutboundField<'a>>);

struct OutboundField<'a> {
    /// In lower case.
    name: &'a str,
    value: Cow<'a, HeaderValue>,
}

impl<'a> OutboundFields<'a> {
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// All fields of `map`.
    pub fn of(map: &'a HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len());
        for (name, value) in map {
            fields.push(name, value);
        }
        fields
    }

    pub fn push(&mut self, name: &'a HeaderName, value: &'a HeaderValue) {
        let value = Cow::Borrowed(value);
        self.0.push(OutboundField {
            name: name.as_str(),
            value,
        });
    }

    /// Appends a field that the gateway adds. `name`: in lower case.
    pub fn push_own(&mut self, name: &'static str, value: Cow<'a, HeaderValue>) {
        self.0.push(OutboundField { name, value });
    }

    /// Replaces all fields of this name. `name`: in lower case.
    pub fn set(&mut self, name: &'a str, value: Cow<'a, HeaderValue>) {
        self.remove(name);
        self.0.push(OutboundField { name, value });
    }

    /// `name`: in lower case.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|field| field.name != name);
    }

    /// The first value of this name, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&HeaderValue> {
        self.get_all(name).next()
    }

    pub fn get_all(&self, name: &str) -> impl Iterator<Item = &HeaderValue> {
        let fields = self.0.iter().filter(move |field| field.name == name);
        fields.map(|field| &*field.value)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Names and values, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &HeaderValue)> {
        self.0.iter().map(|field| (field.name, &*field.value))
    }

    /// The same fields as a map.
    pub fn to_map(&self) -> HeaderMap {
        let mut map = HeaderMap::with_capacity(self.0.len());
        for (name, value) in self.iter() {
            if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
                map.append(name, value.clone());
            }
        }
        map
    }
}

// Names only: values may be credentials.
impl std::fmt::Debug for OutboundFields<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.iter().map(|(name, _)| name))
            .finish()
    }
}
