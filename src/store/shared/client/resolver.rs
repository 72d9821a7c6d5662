//! Resolves host names for the `redis` crate, which would use the C library.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use redis::io::AsyncDNSResolver;
use redis::{RedisError, RedisFuture};

use crate::dns::DnsResolver;
use crate::error_chain::chain;

#[derive(Clone, Debug)]
pub(in crate::store::shared) struct RedisResolver(Arc<DnsResolver>);

impl Default for RedisResolver {
    fn default() -> Self {
        Self(Arc::new(DnsResolver::of_this_host()))
    }
}

type ResolvedAddresses<'a> = Box<dyn Iterator<Item = SocketAddr> + Send + 'a>;

impl RedisResolver {
    async fn find(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, RedisError> {
        let missing = |why: String| {
            let text = format!("cannot find the address of {host}: {why}");
            io::Error::new(io::ErrorKind::NotFound, text)
        };
        let found = self.0.find(host).await;
        let found = found.map_err(|error| missing(chain(&error)))?;
        if found.is_empty() {
            // The crate panics over a name without addresses.
            return Err(missing("it has none".to_owned()).into());
        }
        let at_port = |ip| SocketAddr::new(ip, port);
        Ok(found.into_iter().map(at_port).collect())
    }
}

impl AsyncDNSResolver for RedisResolver {
    fn resolve<'a, 'b: 'a>(
        &'a self,
        host: &'b str,
        port: u16,
    ) -> RedisFuture<'a, ResolvedAddresses<'a>> {
        Box::pin(async move {
            let found = self.find(host, port).await?;
            Ok(Box::new(found.into_iter()) as ResolvedAddresses<'a>)
        })
    }
}
