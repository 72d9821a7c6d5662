//! One request and its response on a stream. Dropped before the end of either, it resets the stream
//! (CANCEL); the connection stays.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{FlowControl, Reason, RecvStream};
use http::{Method, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};

use super::http2_connection::StreamLease;
use super::request_head::{UnsendableHead, request_head};
use super::stream_failure::{response_error, send_error};
use super::stream_upload::StreamUpload;
use crate::lazy_timer::LazyTimer;
use crate::upstream::transport::framing::{BodyFraming, FramingError, reframe};
use crate::upstream::transport::http1::connection::{MAX_INFORMATIONAL, ResponseTimeout};
use crate::upstream::transport::http1::response_head::{MAX_FIELDS, MAX_HEAD};
use crate::upstream::transport::outbound_request::OutboundRequest;
use crate::upstream::transport::response_body::ConnectionHandle;
use crate::upstream::transport::response_error::ResponseError;
use crate::upstream::transport::send_error::{SendError, SendErrorKind};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A request on its stream.
pub(in crate::upstream) struct Http2Exchange<B> {
    upload: StreamUpload<B>,
    response: ResponseFuture,
    body: Option<ArrivingContent>,
    method: Method,
    informational: u32,
    timer: Option<Pin<Box<LazyTimer>>>,
    /// Dropped last: the stream has ended then.
    lease: StreamLease,
}

/// The content of a response.
struct ArrivingContent {
    stream: RecvStream,
    flow: FlowControl,
    /// Bytes that are still to come; None: not declared.
    left: Option<u64>,
    has_ended: bool,
}

impl<B> Http2Exchange<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    /// Sends the head of `request`. `is_tls`: whether the connection is TLS.
    pub(in crate::upstream) fn begin(
        lease: StreamLease,
        request: OutboundRequest<'_, B>,
        is_tls: bool,
    ) -> Result<Box<Self>, SendError> {
        let OutboundRequest {
            method,
            target,
            fields,
            body,
        } = request;
        let head = request_head(method, target, &fields, is_tls);
        let head = head.map_err(|error: UnsendableHead| {
            SendError::new(SendErrorKind::Protocol, true, error)
        })?;
        let declared = fields.get("content-length");
        let declared = declared.and_then(|length| length.to_str().ok()?.parse().ok());
        let length = declared.or_else(|| body.size_hint().exact());
        let has_body = length != Some(0);
        let mut sender = lease.sender();
        let sent = sender.send_request(head, !has_body);
        let (response, stream) = sent.map_err(|error| {
            // Nothing was handed over.
            lease.close();
            SendError::new(SendErrorKind::NotProcessed, true, response_error(error))
        })?;
        Ok(Box::new(Self {
            upload: match has_body {
                true => StreamUpload::of(stream, body, length),
                false => StreamUpload::none(stream),
            },
            response,
            body: None,
            method: method.clone(),
            informational: 0,
            timer: None,
            lease,
        }))
    }

    /// Sends the request, and waits for the head of its response.
    pub(in crate::upstream) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        timeout: ResponseTimeout,
    ) -> Poll<Result<Response<()>, SendError>> {
        if let Err(error) = self.upload.poll_send(cx) {
            let error = SendError::new(SendErrorKind::BodyFailed, false, error);
            return Poll::Ready(Err(error));
        }
        match self.poll_response(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => {
                ready!(self.poll_late(cx, timeout));
                self.lease.is_late();
                Poll::Ready(Err(SendErrorKind::FirstByteTimeout.into()))
            }
        }
    }

    fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<()>, SendError>> {
        while let Poll::Ready(Some(Ok(head))) = self.response.poll_informational(cx) {
            self.informational += 1;
            if head.status() == StatusCode::SWITCHING_PROTOCOLS {
                let error = SendErrorKind::Framing(FramingError::SwitchingProtocols);
                return Poll::Ready(Err(error.into()));
            }
            if self.informational > MAX_INFORMATIONAL {
                let error = ResponseError::TooManyInformational(MAX_INFORMATIONAL);
                return Poll::Ready(Err(protocol_error(error)));
            }
        }
        match ready!(Pin::new(&mut self.response).poll(cx)) {
            Ok(response) => Poll::Ready(self.accept(response)),
            Err(error) => Poll::Ready(Err(send_error(error, &self.lease))),
        }
    }

    fn accept(&mut self, response: Response<RecvStream>) -> Result<Response<()>, SendError> {
        self.lease.responded();
        let (parts, mut stream) = response.into_parts();
        let mut response = Response::from_parts(parts, ());
        if response.headers().len() > MAX_FIELDS {
            return Err(protocol_error(ResponseError::HeadTooLarge(MAX_HEAD)));
        }
        // h2 has refused the fields of a connection: what is left is the length.
        *response.version_mut() = Version::HTTP_11;
        let framing = reframe(&mut response, &self.method);
        let framing = framing.map_err(|error| SendError::from(SendErrorKind::Framing(error)))?;
        let (left, has_ended) = match framing.body {
            BodyFraming::Empty => (Some(0), true),
            BodyFraming::Length(length) => (Some(length), false),
            BodyFraming::Chunked | BodyFraming::UntilClose => (None, false),
        };
        self.body = Some(ArrivingContent {
            flow: stream.flow_control().clone(),
            has_ended: has_ended || stream.is_end_stream(),
            stream,
            left,
        });
        if let Some(ArrivingContent {
            has_ended: true,
            left: Some(1..),
            ..
        }) = &self.body
        {
            return Err(protocol_error(ResponseError::BodyCut));
        }
        Ok(response)
    }

    /// Ready at the deadline.
    fn poll_late(&mut self, cx: &mut Context<'_>, timeout: ResponseTimeout) -> Poll<()> {
        let due = self.upload.deadline(timeout.first_byte);
        let due = timeout.until.map_or(due, |until| until.min(due));
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(LazyTimer::new(due)));
        timer.as_mut().poll_until(cx, due)
    }
}

impl<B> Http2Exchange<B> {
    /// How long the exchange has waited for the upstream; None while it waits for the client.
    pub(in crate::upstream) fn owed_for(&self) -> Option<std::time::Duration> {
        self.upload.owed_for()
    }
}

fn protocol_error(error: ResponseError) -> SendError {
    SendError::new(SendErrorKind::Protocol, false, error)
}

impl ArrivingContent {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
        is_request_sent: bool,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        if self.has_ended {
            return Poll::Ready(None);
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(data)) => Poll::Ready(Some(self.take(data))),
            Some(Err(error)) => Poll::Ready(self.failed(error, is_request_sent).map(Err)),
            None => self.poll_trailers(cx, is_request_sent),
        }
    }

    fn take(&mut self, data: Bytes) -> Result<Frame<Bytes>, ResponseError> {
        // The client takes it: the peer may send as much again.
        let _ = self.flow.release_capacity(data.len());
        if let Some(left) = &mut self.left {
            let length = data.len() as u64;
            *left = left.checked_sub(length).ok_or(ResponseError::BodyLength)?;
        }
        self.has_ended = self.stream.is_end_stream();
        match (self.has_ended, self.left) {
            (true, Some(1..)) => Err(ResponseError::BodyLength),
            _ => Ok(Frame::data(data)),
        }
    }

    fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
        is_request_sent: bool,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let trailers = match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers,
            Err(error) => return Poll::Ready(self.failed(error, is_request_sent).map(Err)),
        };
        self.has_ended = true;
        if matches!(self.left, Some(1..)) {
            return Poll::Ready(Some(Err(ResponseError::BodyLength)));
        }
        Poll::Ready(match trailers {
            Some(trailers) if trailers.len() > MAX_FIELDS => Some(Err(ResponseError::Trailers)),
            trailers => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
        })
    }

    /// None: the response is complete. A server that needs no more of the request resets the stream
    /// with NO_ERROR, after the end of its response (RFC 9113, 8.1).
    fn failed(&mut self, error: h2::Error, is_request_sent: bool) -> Option<ResponseError> {
        self.has_ended = true;
        let is_early_end = error.is_reset()
            && error.is_remote()
            && error.reason() == Some(Reason::NO_ERROR)
            && !is_request_sent;
        (!is_early_end || matches!(self.left, Some(1..))).then(|| response_error(error))
    }
}

impl<B> ConnectionHandle for Http2Exchange<B>
where
    B: Body<Data = Bytes> + Send + Sync + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        if let Err(error) = self.upload.poll_send(cx) {
            return Poll::Ready(Some(Err(error)));
        }
        match &mut self.body {
            Some(body) => body.poll_frame(cx, self.upload.is_sent()),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(|body| body.has_ended)
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.body.as_ref().and_then(|body| body.left);
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn has_news(&self) -> bool {
        let body = self.body.as_ref();
        body.is_some_and(|body| body.flow.used_capacity() > 0 || body.stream.is_end_stream())
    }

    /// The stream ends with this; a request that was not sent to its end is reset.
    fn give_back(self: Box<Self>) {}
}
