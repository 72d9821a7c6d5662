//! Parses `/etc/resolv.conf` as described in resolv.conf(5). An invalid entry is skipped, the rest of
//! the file is used.

use std::net::IpAddr;
use std::time::Duration;

use hickory_resolver::proto::rr::Name;

/// Most name servers that are queried, as in the C library.
const MAX_SERVERS: usize = 3;
const MAX_TIMEOUT: u64 = 30;
const MAX_ATTEMPTS: u64 = 5;
const MAX_DOTS: u64 = 15;
/// Options without effect here, or whose effect is the default.
const IGNORED_OPTIONS: [&str; 12] = [
    "debug",
    "rotate",
    "no-check-names",
    "inet6",
    "ip6-bytestring",
    "ip6-dotint",
    "no-ip6-dotint",
    "single-request",
    "single-request-reopen",
    "no-tld-query",
    "trust-ad",
    "no-reload",
];

/// The content of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResolvConf {
    pub(super) servers: Vec<IpAddr>,
    pub(super) search: Vec<Name>,
    /// A name with at least this many dots is queried unchanged before the search list is tried.
    pub(super) ndots: usize,
    /// For one query to one server.
    pub(super) timeout: Duration,
    /// How often one server is queried.
    pub(super) attempts: usize,
    pub(super) uses_edns: bool,
    pub(super) uses_tcp: bool,
    /// IPv6 addresses are not queried.
    pub(super) without_aaaa: bool,
    pub(super) skipped: Vec<SkippedEntry>,
}

/// An entry that could not be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SkippedEntry {
    pub(super) line: usize,
    pub(super) entry: String,
    pub(super) reason: &'static str,
}

impl SkippedEntry {
    pub(super) fn new(line: usize, entry: &str, reason: &'static str) -> Self {
        let entry = entry.escape_debug().take(100).collect();
        Self {
            line,
            entry,
            reason,
        }
    }
}

impl Default for ResolvConf {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: Vec::new(),
            ndots: 1,
            timeout: Duration::from_secs(5),
            attempts: 2,
            uses_edns: false,
            uses_tcp: false,
            without_aaaa: false,
            skipped: Vec::new(),
        }
    }
}

impl ResolvConf {
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut conf = Self::default();
        for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.split(['#', ';']).next().unwrap_or_default();
            conf.parse_line(at + 1, line);
        }
        conf
    }

    fn parse_line(&mut self, line: usize, text: &str) {
        let mut words = text.split_whitespace();
        let Some(keyword) = words.next() else { return };
        match keyword {
            "nameserver" => self.add_server(line, words.next()),
            // The last of `search` and `domain` is used.
            "search" => self.set_search(line, words),
            "domain" => self.set_search(line, words.take(1)),
            "options" => words.for_each(|option| self.set_option(line, option)),
            "sortlist" => {}
            _ => self.skip(line, text.trim(), "this keyword is not known"),
        }
    }

    fn skip(&mut self, line: usize, entry: &str, reason: &'static str) {
        self.skipped.push(SkippedEntry::new(line, entry, reason));
    }

    fn add_server(&mut self, line: usize, address: Option<&str>) {
        let text = address.unwrap_or_default();
        match text.parse() {
            Ok(_) if self.servers.len() == MAX_SERVERS => {
                self.skip(line, text, "only the first three servers are used");
            }
            Ok(address) if self.servers.contains(&address) => {}
            Ok(address) => self.servers.push(address),
            Err(_) if text.contains('%') => {
                self.skip(line, text, "an address with a zone cannot be used");
            }
            Err(_) => self.skip(line, text, "this is not an IP address"),
        }
    }

    fn set_search<'a>(&mut self, line: usize, domains: impl Iterator<Item = &'a str>) {
        self.search.clear();
        for domain in domains {
            if domain == "." {
                continue; // the root: the unchanged name, which is tried anyway
            }
            match Name::from_str_relaxed(domain) {
                Ok(mut name) => {
                    name.set_fqdn(true);
                    self.search.push(name);
                }
                Err(_) => self.skip(line, domain, "this is not a domain name"),
            }
        }
    }

    fn set_option(&mut self, line: usize, option: &str) {
        let (key, value) = option.split_once(':').unwrap_or((option, ""));
        let mut number = |max: u64| {
            let number = value.parse::<u64>().ok().map(|number| number.min(max));
            if number.is_none() {
                let reason = "this option needs a number";
                self.skipped.push(SkippedEntry::new(line, option, reason));
            }
            number
        };
        match key {
            "ndots" => self.ndots = number(MAX_DOTS).map_or(self.ndots, as_usize),
            "timeout" => {
                let seconds = number(MAX_TIMEOUT).map(|seconds| seconds.max(1));
                self.timeout = seconds.map_or(self.timeout, Duration::from_secs);
            }
            "attempts" => {
                self.attempts = number(MAX_ATTEMPTS).map_or(self.attempts, as_usize).max(1);
            }
            "edns0" => self.uses_edns = true,
            "use-vc" => self.uses_tcp = true,
            "no-aaaa" => self.without_aaaa = true,
            _ if IGNORED_OPTIONS.contains(&key) => {}
            _ => self.skip(line, option, "this option is not known"),
        }
    }

    /// The names to query for `name`, in this order.
    pub(super) fn candidates(&self, name: &Name) -> Vec<Name> {
        let mut whole = name.clone();
        whole.set_fqdn(true);
        if name.is_fqdn() {
            return vec![whole];
        }
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let below = self.search.iter();
        let mut names: Vec<Name> = below
            .filter_map(|domain| name.clone().append_domain(domain).ok())
            .collect();
        let at = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(at, whole);
        names
    }
}

fn as_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines(conf: &ResolvConf) -> Vec<usize> {
        conf.skipped.iter().map(|skipped| skipped.line).collect()
    }

    #[test]
    fn an_invalid_entry_is_skipped() {
        let text = b"search bad..domain good.example\nnameserver 10.0.0.1\nnameserver ten\n\
            nameserver fe80::1%eth0\nnameserver\nnameserver \xff\xfe\nnameserver 10.0.0.2 extra\n\
            options timeout:2 nonsense timeout:x ndots:2\nfrobnicate\noptions attempts:0\n";
        let conf = ResolvConf::parse(text);
        let servers: Vec<IpAddr> = ["10.0.0.1", "10.0.0.2"]
            .map(|ip| ip.parse().unwrap())
            .into();
        assert_eq!(conf.servers, servers);
        assert_eq!(conf.search, [Name::from_ascii("good.example.").unwrap()]);
        assert_eq!(
            (conf.timeout.as_secs(), conf.ndots, conf.attempts),
            (2, 2, 1)
        );
        assert_eq!(lines(&conf), [1, 3, 4, 5, 6, 8, 8, 9]);
        assert_eq!(conf.skipped[0].entry, "bad..domain");
    }

    #[test]
    fn the_usual_entries_are_understood() {
        let text = b"# made by hand\r\nnameserver 10.0.0.1\r\n; old\nnameserver 10.0.0.1\n\
            domain first.example\nsearch . a.example b_c.example\noptions edns0 trust-ad no-aaaa \
            use-vc rotate ndots:99 timeout:999\nnameserver 2001:db8::1\nnameserver 10.0.0.3\n\
            nameserver 10.0.0.4\nsortlist 10.0.0.0\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.servers.len(), 3);
        assert_eq!(
            lines(&conf),
            [10],
            "a fourth server is skipped and reported"
        );
        assert!(conf.uses_edns && conf.without_aaaa && conf.uses_tcp);
        assert_eq!((conf.ndots, conf.timeout.as_secs()), (15, 30));
        let search: Vec<String> = conf.search.iter().map(ToString::to_string).collect();
        assert_eq!(search, ["a.example.", "b_c.example."]);
        assert_eq!(ResolvConf::parse(b""), ResolvConf::default());
    }

    #[test]
    fn the_search_list_is_used_as_in_the_c_library() {
        let conf = ResolvConf::parse(b"search a.example b.example\noptions ndots:2\n");
        let asked = |name: &str| -> Vec<String> {
            let names = conf.candidates(&Name::from_ascii(name).unwrap());
            names.iter().map(ToString::to_string).collect()
        };
        assert_eq!(asked("x"), ["x.a.example.", "x.b.example.", "x."]);
        assert_eq!(asked("x.y"), ["x.y.a.example.", "x.y.b.example.", "x.y."]);
        assert_eq!(
            asked("x.y.z"),
            ["x.y.z.", "x.y.z.a.example.", "x.y.z.b.example."]
        );
        assert_eq!(asked("x.y."), ["x.y."]);
    }

    proptest! {
        /// A valid line is used, whatever is before and after it.
        #[test]
        fn any_bytes_around_a_valid_line_leave_it_valid(
            before in prop::collection::vec(any::<u8>(), 0..80),
            after in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let text = [&before[..], b"\nnameserver 10.9.8.7\n", &after[..]].concat();
            let conf = ResolvConf::parse(&text);
            let good: IpAddr = "10.9.8.7".parse().unwrap();
            prop_assert!(conf.servers.contains(&good));
        }
    }
}
