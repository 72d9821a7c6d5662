//! One worker's connections to each endpoint of an upstream. The lanes follow the list of endpoints.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use http_body::Body;
use parking_lot::Mutex;

use super::http2_connection_set::Http2ConnectionSet;
use crate::lifecycle::TaskSet;
use crate::upstream::Upstream;
use crate::upstream::endpoints::{Endpoint, EndpointChoice, EndpointList};
use crate::upstream::transport::http1::connection::UpstreamConnection;
use crate::upstream::transport::in_flight_count::InFlightRequest;
use crate::upstream::transport::pool::IdlePool;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One worker's connections to one endpoint.
#[derive(Debug)]
pub(in crate::upstream) struct EndpointLane<B> {
    pub(in crate::upstream) endpoint: Arc<Endpoint>,
    pub(in crate::upstream) pool: Arc<IdlePool<UpstreamConnection<B>>>,
    /// None: HTTP/1.1 only.
    pub(super) http2: Option<Arc<Http2ConnectionSet>>,
    /// The endpoint's `Host`, in memory of its own: workers do not contend for its reference count.
    pub(super) host: HeaderValue,
}

/// The endpoint of one request.
#[derive(Debug)]
pub struct ChosenEndpoint<B> {
    pub(in crate::upstream) lane: Arc<EndpointLane<B>>,
    /// None: the upstream has one endpoint, whose requests are not counted.
    pub(in crate::upstream) in_flight: Option<InFlightRequest>,
}

impl<B> ChosenEndpoint<B> {
    /// Its address.
    pub fn name(&self) -> &Arc<str> {
        &self.lane.endpoint.state.name
    }
}

/// The lanes of one worker to one upstream.
#[derive(Debug)]
pub(super) enum EndpointLanes<B> {
    One(Arc<EndpointLane<B>>),
    Several {
        table: Mutex<LaneTable<B>>,
        /// Those of the worker's own runtime.
        tasks: TaskSet,
    },
}

/// The lanes to the endpoints of `list`, in its order.
#[derive(Debug)]
pub(super) struct LaneTable<B> {
    list: Arc<EndpointList>,
    lanes: Vec<Arc<EndpointLane<B>>>,
}

impl<B> EndpointLanes<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    pub(super) fn new(upstream: &Arc<Upstream>, tasks: &TaskSet) -> Self {
        let lane = |endpoint: &Arc<Endpoint>| EndpointLane::new(endpoint, upstream, tasks);
        match upstream.endpoints.sole() {
            Some(sole) => Self::One(lane(sole)),
            None => {
                let list = upstream.endpoints.list();
                let lanes = list.endpoints.iter().map(lane).collect();
                Self::Several {
                    table: Mutex::new(LaneTable { list, lanes }),
                    tasks: tasks.clone(),
                }
            }
        }
    }

    /// None: no endpoint is in use that `choice` allows.
    pub(super) fn choose(
        &self,
        upstream: &Arc<Upstream>,
        choice: EndpointChoice<'_>,
    ) -> Option<ChosenEndpoint<B>> {
        let (table, tasks) = match self {
            Self::One(lane) => {
                return choice.tried.is_empty().then(|| ChosenEndpoint {
                    lane: Arc::clone(lane),
                    in_flight: None,
                });
            }
            Self::Several { table, tasks } => (table, tasks),
        };
        let mut table = table.lock();
        if table.list.generation != upstream.endpoints.generation() {
            table.follow(upstream, tasks);
        }
        let position = upstream.endpoints.choose(&table.list, choice)?;
        let lane = Arc::clone(&table.lanes[position]);
        let in_flight = Some(InFlightRequest::begin(&lane.endpoint.state.in_flight));
        Some(ChosenEndpoint { lane, in_flight })
    }
}

impl<B> EndpointLanes<B> {
    /// The lane of the endpoint with this name.
    pub(super) fn named(&self, name: &str) -> Option<ChosenEndpoint<B>> {
        match self {
            Self::One(lane) => Some(ChosenEndpoint {
                lane: Arc::clone(lane),
                in_flight: None,
            }),
            Self::Several { table, .. } => {
                let table = table.lock();
                let mut lanes = table.lanes.iter();
                let lane = lanes.find(|lane| *lane.endpoint.state.name == *name)?;
                Some(ChosenEndpoint {
                    lane: Arc::clone(lane),
                    in_flight: Some(InFlightRequest::begin(&lane.endpoint.state.in_flight)),
                })
            }
        }
    }
}

impl<B> LaneTable<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    /// Takes the newest list. Connections to endpoints that stay are kept.
    fn follow(&mut self, upstream: &Arc<Upstream>, tasks: &TaskSet) {
        let list = upstream.endpoints.list();
        let lane = |endpoint: &Arc<Endpoint>| {
            let mut lanes = self.lanes.iter();
            let kept = lanes.find(|lane| Arc::ptr_eq(&lane.endpoint, endpoint));
            kept.map_or_else(|| EndpointLane::new(endpoint, upstream, tasks), Arc::clone)
        };
        let lanes = list.endpoints.iter().map(lane).collect();
        *self = Self { list, lanes };
    }
}

impl<B> EndpointLane<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    fn new(endpoint: &Arc<Endpoint>, upstream: &Arc<Upstream>, tasks: &TaskSet) -> Arc<Self> {
        let may_speak = endpoint.dialer.may_speak_http2();
        Arc::new(Self {
            endpoint: Arc::clone(endpoint),
            pool: IdlePool::new(upstream.idle_timeout, tasks),
            http2: may_speak.then(|| Http2ConnectionSet::new(upstream, endpoint, tasks)),
            host: copy(&endpoint.host),
        })
    }
}

impl<B> EndpointLane<B> {
    /// The HTTP/2 connections, unless the endpoint has chosen HTTP/1.1.
    pub(super) fn http2_first(&self) -> Option<&Arc<Http2ConnectionSet>> {
        self.http2.as_ref().filter(|set| !set.is_http1_chosen())
    }
}

fn copy(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}
