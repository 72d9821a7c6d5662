//! The ways to an upstream, with real sockets: Unix sockets, client certificates, proxies. A login and
//! requests go each way.

mod client_certificates;
mod site;
mod unix_sockets;
