//! `[operator]`: the operator's own listener.

use std::net::{Ipv4Addr, SocketAddr};

use crate::config::Operator;
use crate::config::file::config_table::ConfigTable;
use crate::config::file::named_files::secret_that;
use crate::config::file::value_readers::{address, flag};
use crate::secret::{LEAST_OPERATOR_TOKEN, Secret};

pub(in crate::config::file) fn operator(root: &ConfigTable<'_>) -> Operator {
    let table = root.section("operator");
    let address = table
        .as_ref()
        .and_then(|table| table.read("address", address));
    let address = address.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 9090)));
    let rule = "must have at least 16 characters: it allows making API keys";
    let is_long = |secret: &Secret| secret.expose().chars().count() >= LEAST_OPERATOR_TOKEN;
    let token = table.as_ref();
    let token = token.and_then(|table| table.read("token", secret_that(is_long, rule)));
    let is_meant = |table: &ConfigTable<'_>| table.or("allow_plaintext", flag, false);
    if let Some(table) = table.filter(|table| !is_meant(table) && !address.ip().is_loopback()) {
        let reason = "is not loopback: any host that reaches it can read health and metrics";
        table.warn(
            "address",
            reason,
            "set allow_plaintext = true if that is intended",
        );
    }
    Operator { address, token }
}
