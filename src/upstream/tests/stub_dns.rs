//! A name server with scripted replies.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_resolver::proto::op::{Message, ResponseCode};
use hickory_resolver::proto::rr::{RData, Record, RecordType};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::lifecycle::{ShutdownSignal, TaskSet};

/// One scripted reply.
#[derive(Clone, Debug)]
pub(super) enum DnsReply {
    /// Addresses and their TTL in seconds.
    Addresses(Vec<IpAddr>, u32),
    Code(ResponseCode),
    /// The name exists, but has no addresses of this family.
    Nothing,
    Silence,
    /// The query's id, followed by these bytes.
    Bytes(Vec<u8>),
    Later(u64, Box<Self>),
}

impl DnsReply {
    pub(super) fn address(ip: &str) -> Self {
        Self::Addresses(vec![ip.parse().unwrap()], 60)
    }
}

pub(super) const NO_NAME: DnsReply = DnsReply::Code(ResponseCode::NXDomain);

type Script = dyn Fn(&str, RecordType) -> DnsReply + Send + Sync;

/// Lives until the test's runtime ends.
#[derive(Clone)]
pub(super) struct StubDns {
    pub(super) port: u16,
    script: Arc<Mutex<Arc<Script>>>,
    queries: Arc<Mutex<Vec<String>>>,
    stop: ShutdownSignal,
    tasks: TaskSet,
}

impl StubDns {
    pub(super) async fn start(
        script: impl Fn(&str, RecordType) -> DnsReply + Send + Sync + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    pub(super) async fn start_at(
        address: SocketAddr,
        script: impl Fn(&str, RecordType) -> DnsReply + Send + Sync + 'static,
    ) -> Self {
        let socket = Arc::new(UdpSocket::bind(address).await.unwrap());
        let stub = Self {
            port: socket.local_addr().unwrap().port(),
            script: Arc::new(Mutex::new(Arc::new(script))),
            queries: Arc::default(),
            stop: ShutdownSignal::default(),
            tasks: TaskSet::new(Handle::current()),
        };
        let (serving, tasks) = (stub.clone(), TaskSet::new(Handle::current()));
        stub.tasks.spawn("name server", async move {
            let mut bytes = [0; 1500];
            loop {
                let (length, from) = tokio::select! {
                    received = socket.recv_from(&mut bytes) => received.unwrap(),
                    () = serving.stop.draining() => return,
                };
                let question = Message::from_vec(&bytes[..length]).unwrap();
                let (answering, socket) = (serving.clone(), Arc::clone(&socket));
                tasks.spawn("answer of a name server", async move {
                    if let Some(answer) = answering.answer(question).await {
                        let _ = socket.send_to(&answer, from).await;
                    }
                });
            }
        });
        stub
    }

    /// Stops the server and releases its port.
    pub(super) async fn end(self) {
        self.stop.drain();
        self.tasks.wait().await;
    }

    /// Replaces the script.
    pub(super) fn set_script(
        &self,
        script: impl Fn(&str, RecordType) -> DnsReply + Send + Sync + 'static,
    ) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    /// The queries so far: name and record type.
    pub(super) fn queries(&self) -> Vec<String> {
        self.queries.lock().unwrap().clone()
    }

    async fn answer(&self, question: Message) -> Option<Vec<u8>> {
        let mut message = question.into_response();
        message.metadata.recursion_available = true;
        let query = message.queries[0].clone();
        let name = query.name().to_string();
        let asked = format!("{name} {}", query.query_type());
        self.queries.lock().unwrap().push(asked);
        let script = Arc::clone(&self.script.lock().unwrap());
        let mut set_script = script(name.trim_end_matches('.'), query.query_type());
        while let DnsReply::Later(millis, then) = set_script {
            sleep(Duration::from_millis(millis)).await;
            set_script = *then;
        }
        match set_script {
            DnsReply::Addresses(addresses, ttl) => {
                for ip in addresses {
                    let name = query.name().clone();
                    message.add_answer(Record::from_rdata(name, ttl, RData::from(ip)));
                }
            }
            DnsReply::Code(code) => message.metadata.response_code = code,
            DnsReply::Silence => return None,
            DnsReply::Bytes(bytes) => {
                let number = message.metadata.id.to_be_bytes();
                return Some([&number[..], &bytes].concat());
            }
            DnsReply::Nothing | DnsReply::Later(..) => {}
        }
        Some(message.to_vec().unwrap())
    }
}
