//! `[[listener]]`: where clients connect.

use std::time::Duration;

use crate::config::file::config_table::{ConfigTable, ConfigValue};
use crate::config::file::named_files::{key_file, public_file};
use crate::config::file::value_readers::{address, flag, number, size, span};
use crate::config::{CertificateFiles, Listener, ListenerTls};

pub(in crate::config::file) fn listeners(root: &ConfigTable<'_>) -> Vec<Listener> {
    let tables = root.sections("listener");
    if tables.is_empty() {
        let example = "[[listener]] with an address, such as \"0.0.0.0:8443\"";
        root.missing("listener", example);
    }
    tables.iter().filter_map(listener).collect()
}

fn listener(table: &ConfigTable<'_>) -> Option<Listener> {
    let address = table.required("address", address, "\"0.0.0.0:8443\"");
    let tls = table.section("tls");
    let plaintext = table.or("allow_plaintext", flag, false);
    if let Some(address) = address.filter(|_| tls.is_none() && !plaintext)
        && !address.ip().is_loopback()
    {
        let reason = "has no tls and is not loopback: passwords would travel in the clear";
        let suggestion = "add tls = { certificates = [...] }, or allow_plaintext = true";
        table.complain("", reason, suggestion);
    }
    if tls.is_some() && plaintext {
        let reason = "has no effect beside tls: this listener never speaks plain HTTP";
        table.complain("allow_plaintext", reason, "remove one of the two");
    }
    let max_header_size = size(1024..=16 << 20);
    let header_bytes = table.or("max_header_size", max_header_size, 64 << 10);
    Some(Listener {
        tls: tls.as_ref().map(listener_tls),
        max_connections: table.or("max_connections", number(1..=1_000_000), 10_000),
        handshake_timeout: table.or("handshake_timeout", span, Duration::from_secs(10)),
        header_timeout: table.or("header_timeout", span, Duration::from_secs(10)),
        idle_timeout: table.or("idle_timeout", span, Duration::from_secs(60)),
        max_header_bytes: usize::try_from(header_bytes).unwrap_or(usize::MAX),
        max_headers: table.or("max_headers", number(8..=1000), 100),
        max_streams: table.or("max_streams", number(1..=10_000), 128),
        address: address?,
    })
}

fn listener_tls(table: &ConfigTable<'_>) -> ListenerTls {
    let example = "[{ certificate = \"server.pem\", key = \"server.key\" }]";
    let certificates = table.required("certificates", certificates, example);
    ListenerTls {
        certificates: certificates.unwrap_or_default(),
        only_tls13: table.or("only_tls13", flag, false),
    }
}

fn certificates(value: &ConfigValue<'_>) -> Option<Vec<CertificateFiles>> {
    let items = value.items()?;
    if items.is_empty() {
        value.complain("must not be empty", "without a certificate there is no TLS");
    }
    Some(items.iter().filter_map(certificate).collect())
}

fn certificate(value: &ConfigValue<'_>) -> Option<CertificateFiles> {
    let table = value.table()?;
    let certificate = table.required("certificate", public_file, "\"server.pem\"");
    let key = table.required("key", key_file, "\"server.key\"");
    Some(CertificateFiles {
        certificate: certificate?,
        key: key?,
    })
}
