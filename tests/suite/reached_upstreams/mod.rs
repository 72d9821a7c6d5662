//! The ways to an upstream, with real sockets: Unix sockets, client certificates, proxies. A login and
//! requests go each way.

mod bad_files;
mod client_certificates;
mod proxies;
mod site;
mod unix_sockets;
