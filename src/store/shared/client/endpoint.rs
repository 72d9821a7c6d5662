//! Finding the server: configured by address, or found through Sentinel or a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    ProtocolVersion, RedisConnectionInfo, RedisError, TlsCertificates,
};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::redis_keys::RedisKeys;
use super::server_error::describe;
use crate::config::{self, MasterDiscovery, ServerAddress};
use crate::error_chain::chain;
use crate::secret;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(in crate::store::shared) enum EndpointError {
    #[error("cannot read the store's password")]
    Secret(#[from] secret::Error),
    #[error("cannot read the authorities that the store's certificate is checked against")]
    Authorities(#[source] std::io::Error),
    #[error("{} holds no certificate", .0.display())]
    NoAuthority(PathBuf),
    #[error(transparent)]
    Server(#[from] RedisError),
    #[error("no Sentinel knows a master called {0}")]
    NoMaster(String),
    #[error("the cluster has no node for this prefix")]
    NoNode,
}

impl EndpointError {
    /// The error with its causes, without secrets.
    pub(in crate::store::shared) fn describe(&self) -> Arc<str> {
        match self {
            Self::Server(error) => describe(error),
            other => chain(other).into(),
        }
    }
}

/// Connects to the server that accepts changes.
pub(in crate::store::shared) async fn connect(
    settings: &config::SharedStoreConfig,
    keys: &RedisKeys,
    timing: &AsyncConnectionConfig,
) -> Result<(Client, MultiplexedConnection), EndpointError> {
    let mut last = None;
    for server in &settings.servers {
        let found = match &settings.finding {
            MasterDiscovery::Server => Ok(server.clone()),
            MasterDiscovery::Sentinel { master } => {
                ask_sentinel(settings, server, master, timing).await
            }
            MasterDiscovery::Cluster => ask_cluster(settings, server, keys, timing).await,
        };
        let opened = match found {
            Ok(address) => open(settings, &address, ServerKind::Data, timing).await,
            Err(error) => Err(error),
        };
        match opened {
            Ok(opened) => return Ok(opened),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or(EndpointError::NoNode))
}

/// Connects to one data server.
pub(super) async fn open_data(
    settings: &config::SharedStoreConfig,
    address: &ServerAddress,
    timing: &AsyncConnectionConfig,
) -> Result<MultiplexedConnection, EndpointError> {
    let (_, connection) = open(settings, address, ServerKind::Data, timing).await?;
    Ok(connection)
}

/// The two kinds of server, each with its own credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ServerKind {
    Data,
    Sentinel,
}

async fn open(
    settings: &config::SharedStoreConfig,
    address: &ServerAddress,
    kind: ServerKind,
    timing: &AsyncConnectionConfig,
) -> Result<(Client, MultiplexedConnection), EndpointError> {
    let client = client(settings, address, kind)?;
    let connection = client
        .get_multiplexed_async_connection_with_config(timing)
        .await?;
    Ok((client, connection))
}

fn client(
    settings: &config::SharedStoreConfig,
    address: &ServerAddress,
    kind: ServerKind,
) -> Result<Client, EndpointError> {
    let mut redis = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name();
    let password = match kind {
        ServerKind::Sentinel => &settings.sentinel_password,
        ServerKind::Data => {
            redis = redis.set_db(i64::from(settings.database));
            if let Some(username) = &settings.username {
                redis = redis.set_username(username);
            }
            &settings.password
        }
    };
    if let Some(source) = password {
        // Read at every connection, so that a rotated password is used without a restart.
        redis = redis.set_password(source.read()?.expose());
    }
    let info = |address: ConnectionAddr| -> Result<ConnectionInfo, RedisError> {
        Ok(address.into_connection_info()?.set_redis_settings(redis))
    };
    let (host, port) = (address.host.clone(), address.port);
    let Some(tls) = &settings.tls else {
        return Ok(Client::open(info(ConnectionAddr::Tcp(host, port))?)?);
    };
    let tls_address = ConnectionAddr::TcpTls {
        host,
        port,
        insecure: false,
        tls_params: None,
    };
    let root_cert = tls.authorities.as_deref().map(authorities).transpose()?;
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert,
    };
    Ok(Client::build_with_tls(info(tls_address)?, certificates)?)
}

/// Refuses a file without a certificate: the library would take it for an empty set of CAs.
fn authorities(path: &Path) -> Result<Vec<u8>, EndpointError> {
    let pem = std::fs::read(path).map_err(EndpointError::Authorities)?;
    match CertificateDer::pem_slice_iter(&pem).next() {
        Some(_) => Ok(pem),
        None => Err(EndpointError::NoAuthority(path.to_owned())),
    }
}

/// Whether clients can be created from the settings: reads passwords and CA certificates, without
/// connecting.
pub(in crate::store::shared) fn check(
    settings: &config::SharedStoreConfig,
) -> Result<(), EndpointError> {
    let of_servers = match settings.finding {
        MasterDiscovery::Sentinel { .. } => ServerKind::Sentinel,
        MasterDiscovery::Server | MasterDiscovery::Cluster => ServerKind::Data,
    };
    for server in &settings.servers {
        client(settings, server, of_servers)?;
        client(settings, server, ServerKind::Data)?;
    }
    Ok(())
}

async fn ask_sentinel(
    settings: &config::SharedStoreConfig,
    sentinel: &ServerAddress,
    master: &str,
    timing: &AsyncConnectionConfig,
) -> Result<ServerAddress, EndpointError> {
    let (_, mut connection) = open(settings, sentinel, ServerKind::Sentinel, timing).await?;
    let found: Option<(String, u16)> = redis::cmd("SENTINEL")
        .arg("get-master-addr-by-name")
        .arg(master)
        .query_async(&mut connection)
        .await?;
    let (host, port) = found.ok_or_else(|| EndpointError::NoMaster(master.to_owned()))?;
    Ok(ServerAddress { host, port })
}

/// The node that has the slot of the gateways' keys, as `MOVED` names it, or the asked node
/// itself.
async fn ask_cluster(
    settings: &config::SharedStoreConfig,
    seed: &ServerAddress,
    keys: &RedisKeys,
    timing: &AsyncConnectionConfig,
) -> Result<ServerAddress, EndpointError> {
    let (_, mut connection) = open(settings, seed, ServerKind::Data, timing).await?;
    let asked: Result<redis::Value, RedisError> = redis::cmd("EXISTS")
        .arg(&keys.meta)
        .query_async(&mut connection)
        .await;
    let Err(error) = asked else {
        return Ok(seed.clone());
    };
    let named = error.redirect_node().and_then(|(at, _)| {
        let (host, port) = at.rsplit_once(':')?;
        Some((host, port.parse().ok()?))
    });
    let Some((host, port)) = named else {
        return Err(error.into());
    };
    // A node that does not know its own name sends an empty host: use that of the asked one.
    let host = if host.is_empty() { &seed.host } else { host };
    Ok(ServerAddress {
        host: host.to_owned(),
        port,
    })
}
