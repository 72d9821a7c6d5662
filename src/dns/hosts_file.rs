//! Parses `/etc/hosts`. An invalid line is skipped.

use std::collections::HashMap;
use std::net::IpAddr;

use super::resolv_conf::SkippedEntry;

/// The addresses of each name, in the order of the file.
#[derive(Debug, Default)]
pub(super) struct HostsFile {
    by_name: HashMap<String, Vec<IpAddr>>,
    pub(super) skipped: Vec<SkippedEntry>,
}

impl HostsFile {
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut file = Self::default();
        for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let line = String::from_utf8_lossy(line);
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(address) = words.next() else {
                continue;
            };
            match address.parse() {
                Ok(address) => words.for_each(|name| file.add(name, address)),
                Err(_) => {
                    let reason = "this line does not begin with an IP address";
                    file.skipped
                        .push(SkippedEntry::new(at + 1, line.trim(), reason));
                }
            }
        }
        file
    }

    fn add(&mut self, name: &str, address: IpAddr) {
        let addresses = self.by_name.entry(key(name)).or_default();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }

    pub(super) fn find(&self, name: &str) -> Option<&[IpAddr]> {
        self.by_name.get(&key(name)).map(Vec::as_slice)
    }
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_invalid_line_is_skipped() {
        let text = b"127.0.0.1 localhost\n10.0.0.300 webapp\nfe80::1%lo0 webapp\nwebapp 10.0.0.1\n\
            10.0.0.7\tWebApp webapp. # first\n\xff\xfe\n10.0.0.8 webapp\n10.0.0.9\nfd00::7 webapp";
        let file = HostsFile::parse(text);
        let found = file.find("WEBAPP").unwrap();
        let all = ["10.0.0.7", "10.0.0.8", "fd00::7"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(found, all);
        let lines: Vec<usize> = file.skipped.iter().map(|skipped| skipped.line).collect();
        assert_eq!(lines, [2, 3, 4, 6]);
        assert!(file.find("other").is_none());
    }

    proptest! {
        /// A valid line is used, whatever is before and after it.
        #[test]
        fn any_bytes_around_a_valid_line_leave_it_valid(
            before in prop::collection::vec(any::<u8>(), 0..80),
            after in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let text = [&before[..], b"\n10.9.8.7 webapp.test\n", &after[..]].concat();
            let good: IpAddr = "10.9.8.7".parse().unwrap();
            prop_assert!(HostsFile::parse(&text).find("webapp.test").unwrap().contains(&good));
        }
    }
}
