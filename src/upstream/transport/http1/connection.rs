//! One connection, and the exchange on it. It has no task of its own: whoever holds it polls it. In
//! the pool nothing polls it; the socket remembers that something has happened.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::Weak;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONNECTION;
use http::{HeaderMap, Method, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, ReadBuf};
use tokio::time::Instant;

use super::body_decoder::{BodyDecoder, DecodedPart};
use super::request_sender::RequestSender;
use super::response_head::{MAX_HEAD, take_head};
use crate::clock;
use crate::lazy_timer::LazyTimer;
use crate::metrics::GaugeGuard;
use crate::upstream::transport::framing::{FramingError, reframe};
use crate::upstream::transport::in_flight_count::InFlightRequest;
use crate::upstream::transport::keep_alive::KeepAlive;
use crate::upstream::transport::outbound_request::OutboundRequest;
use crate::upstream::transport::pool::{IdlePool, PooledConnection};
use crate::upstream::transport::response_body::ConnectionHandle;
use crate::upstream::transport::response_error::ResponseError;
use crate::upstream::transport::tracked_stream::TrackedStream;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of the first read of a response, which holds most of them whole.
const FIRST_READ: usize = 8 * 1024;
/// Bytes that are read at once of a large body, and so at most kept while the client does not read.
const LARGE_READ: usize = MAX_HEAD;
/// With less room than this, and less than is wanted, memory is allocated for the next read.
const MIN_SPARE: usize = 4 * 1024;
/// Heads with a status of 1xx before the response; more are an attack.
pub(in crate::upstream) const MAX_INFORMATIONAL: u32 = 64;
/// The deadline of a timer that is not set.
const FAR: Duration = Duration::from_secs(86_400);

/// The timeout of a response head.
#[derive(Clone, Copy, Debug)]
pub struct ResponseTimeout {
    /// From the end of the request, or from its last progress while the upstream does not read it.
    pub first_byte: Duration,
    /// End of the whole exchange.
    pub until: Option<Instant>,
}

impl ResponseTimeout {
    /// No deadline of the exchange, only the timeout of the first byte.
    pub const fn within(first_byte: Duration) -> Self {
        Self {
            first_byte,
            until: None,
        }
    }
}

/// Why there is no response head.
#[derive(Debug)]
pub(in crate::upstream) enum HeadFailure {
    Late,
    Framing(FramingError),
    Broken(ResponseError),
}

/// A connection, held by a request, a response body or the pool. Dropping it closes it at once.
pub(in crate::upstream) struct UpstreamConnection<B> {
    stream: TrackedStream,
    request: RequestSender<B>,
    method: Method,
    /// Read, and not used yet.
    received: BytesMut,
    state: ExchangeState,
    informational: u32,
    timer: Pin<Box<LazyTimer>>,
    home: Weak<IdlePool<Self>>,
    _open: GaugeGuard,
    in_flight: Option<InFlightRequest>,
    /// What the upstream has announced in `Keep-Alive`.
    usable_for: Option<Duration>,
    usable_until: Option<Instant>,
}

/// How far the exchange is; `mod.rs` has the diagram.
#[derive(Debug)]
enum ExchangeState {
    Idle,
    Head,
    Body(BodyDecoder),
    /// It broke off: the connection is not used again.
    Failed,
}

impl<B> UpstreamConnection<B> {
    pub(in crate::upstream) fn new(
        stream: TrackedStream,
        home: Weak<IdlePool<Self>>,
        open: GaugeGuard,
    ) -> Box<Self> {
        Box::new(Self {
            stream,
            request: RequestSender::new(),
            method: Method::GET,
            received: BytesMut::new(),
            state: ExchangeState::Idle,
            informational: 0,
            timer: Box::pin(LazyTimer::new(Instant::now() + FAR)),
            home,
            _open: open,
            in_flight: None,
            usable_for: None,
            usable_until: None,
        })
    }

    /// Whether a byte of the response was received.
    pub(in crate::upstream) fn has_received(&self) -> bool {
        self.stream.has_received()
    }

    /// Whether no byte of the request was sent.
    pub(in crate::upstream) fn is_unsent(&self) -> bool {
        self.request.is_unsent()
    }

    /// How long the exchange has waited for the upstream; None while it waits for the client.
    pub(in crate::upstream) fn owed_for(&self) -> Option<Duration> {
        self.request.owed_for()
    }

    /// Records how long the upstream keeps the connection, from a response head that was just received.
    /// The time counts from the head, because the end of the body may be read much later than it was
    /// written.
    fn note_head(&mut self, headers: &HeaderMap, is_last: bool) {
        match KeepAlive::of(headers) {
            _ if is_last || closes(headers) => self.usable_for = Some(Duration::ZERO),
            None if self.usable_for.is_none() => return,
            None => {}
            Some(announced) if announced.is_last => self.usable_for = Some(Duration::ZERO),
            Some(announced) => self.usable_for = announced.usable_for.or(self.usable_for),
        }
        self.usable_until = self.usable_for.map(|time| clock::now() + time);
    }

    /// Reads what has arrived; 0: the connection has ended.
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, ResponseError>> {
        let wanted = match &self.state {
            ExchangeState::Body(body) => {
                let left = body.remaining().unwrap_or(LARGE_READ as u64);
                usize::try_from(left).unwrap_or(LARGE_READ).min(LARGE_READ)
            }
            _ => FIRST_READ,
        };
        // A body that trickles in shares one allocation, although each piece of it is handed on.
        if self.received.capacity() - self.received.len() < wanted.min(MIN_SPARE) {
            self.received.reserve(wanted);
        }
        let read = pin!(self.stream.read_buf(&mut self.received));
        read.poll(cx).map_err(ResponseError::Read)
    }

    /// Why no request can be sent, as far as the socket has reported: its end, or bytes that no request
    /// asked for.
    fn unusable(&mut self) -> Option<ResponseError> {
        if !self.stream.may_have_input() {
            return None;
        }
        let mut byte = [0];
        let mut room = ReadBuf::new(&mut byte);
        // Asks for no wake-up: the next request looks again.
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.stream).poll_read(&mut cx, &mut room) {
            Poll::Pending => None,
            Poll::Ready(Err(error)) => Some(ResponseError::Read(error)),
            Poll::Ready(Ok(())) if room.filled().is_empty() => Some(ResponseError::NoResponse),
            Poll::Ready(Ok(())) => Some(ResponseError::Unasked),
        }
    }
}

impl<B> UpstreamConnection<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Takes `request`; `poll_head` sends it. `in_flight` counts it until its response has ended.
    pub(in crate::upstream) fn begin(
        &mut self,
        request: OutboundRequest<'_, B>,
        in_flight: Option<InFlightRequest>,
    ) {
        self.in_flight = in_flight;
        self.stream.forget_received();
        self.method.clone_from(request.method);
        self.request.begin(request);
        self.state = ExchangeState::Head;
        self.informational = 0;
    }

    /// Sends the request, and waits for the head of its response.
    pub(in crate::upstream) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        timeout: ResponseTimeout,
    ) -> Poll<Result<Response<()>, HeadFailure>> {
        let read = match self.poll_response(cx) {
            Poll::Pending => {
                ready!(self.poll_late(cx, timeout));
                Err(HeadFailure::Late)
            }
            Poll::Ready(Err(error)) => Err(HeadFailure::Broken(error)),
            Poll::Ready(Ok(mut response)) => match reframe(&mut response, &self.method) {
                Err(error) => Err(HeadFailure::Framing(error)),
                Ok(framing) => {
                    self.note_head(response.headers(), framing.is_last);
                    self.state = ExchangeState::Body(BodyDecoder::new(framing.body));
                    return Poll::Ready(Ok(response));
                }
            },
        };
        self.state = ExchangeState::Failed;
        Poll::Ready(read)
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, ResponseError>> {
        // An end that has arrived already: the request may be sent elsewhere, whatever it does.
        if self.request.is_unsent()
            && let Some(error) = self.unusable()
        {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(Err(error)) = self.request.poll_send(cx, &mut self.stream) {
            return Poll::Ready(Err(error));
        }
        loop {
            while !self.received.is_empty()
                && let Some(response) = take_head(&mut self.received)?
            {
                let status = response.status();
                if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Ok(response));
                }
                self.informational += 1;
                if self.informational > MAX_INFORMATIONAL {
                    let error = ResponseError::TooManyInformational(MAX_INFORMATIONAL);
                    return Poll::Ready(Err(error));
                }
            }
            if ready!(self.poll_read(cx))? == 0 {
                return Poll::Ready(Err(match self.received.is_empty() {
                    true => ResponseError::NoResponse,
                    false => ResponseError::HeadCut,
                }));
            }
        }
    }

    /// Ready at the deadline.
    fn poll_late(&mut self, cx: &mut Context<'_>, timeout: ResponseTimeout) -> Poll<()> {
        let due = self.request.deadline(timeout.first_byte);
        let due = timeout.until.map_or(due, |until| until.min(due));
        self.timer.as_mut().poll_until(cx, due)
    }

    fn poll_part(&mut self, cx: &mut Context<'_>) -> Poll<Result<DecodedPart, ResponseError>> {
        if let Poll::Ready(Err(error)) = self.request.poll_send(cx, &mut self.stream) {
            return Poll::Ready(Err(error));
        }
        loop {
            let ExchangeState::Body(body) = &mut self.state else {
                return Poll::Ready(Err(ResponseError::BodyCut));
            };
            match body.decode(&mut self.received)? {
                DecodedPart::Incomplete => {}
                part => return Poll::Ready(Ok(part)),
            }
            if ready!(self.poll_read(cx))? == 0
                && let ExchangeState::Body(body) = &mut self.state
            {
                body.close()?;
            }
        }
    }
}

impl<B> ConnectionHandle for UpstreamConnection<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let part = ready!(self.poll_part(cx));
        Poll::Ready(match part {
            Ok(DecodedPart::Data(data)) => Some(Ok(Frame::data(data))),
            Ok(DecodedPart::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(DecodedPart::End | DecodedPart::Incomplete) => None,
            Err(error) => {
                self.state = ExchangeState::Failed;
                Some(Err(error))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.state, ExchangeState::Body(body) if body.is_ended())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            ExchangeState::Body(body) => body
                .remaining()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            _ => SizeHint::default(),
        }
    }

    fn has_news(&self) -> bool {
        !self.received.is_empty() || self.stream.is_readable()
    }

    fn give_back(mut self: Box<Self>) {
        let is_whole = self.is_end_stream() && self.request.is_sent();
        if !is_whole || !self.received.is_empty() {
            return; // closed
        }
        self.state = ExchangeState::Idle;
        self.in_flight = None;
        self.received = BytesMut::new();
        self.request.rest();
        if let Some(home) = self.home.upgrade()
            && self.can_send()
        {
            home.give_back(self);
        }
    }
}

impl<B> PooledConnection for UpstreamConnection<B> {
    fn usable_until(&self) -> Option<Instant> {
        self.usable_until
    }

    fn can_send(&mut self) -> bool {
        !self.stream.is_retired() && self.unusable().is_none()
    }
}

impl<B> fmt::Debug for UpstreamConnection<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConnection")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// Whether `Connection` names `close` (RFC 9112, 9.6).
fn closes(headers: &HeaderMap) -> bool {
    let mut lines = headers.get_all(CONNECTION).iter();
    lines.any(|line| {
        let mut options = line.as_bytes().split(|byte| *byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}
