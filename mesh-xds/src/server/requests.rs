//! The requests of one stream, read from the body of an HTTP/2 request.
//!
//! Done here rather than by tonic because a server holds its buffer for as long as the stream lives: a client's first
//! message, which may name thousands of resources, must not stay allocated for each of a thousand clients.

use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use http_body::Body as _;
use prost::Message;
use tonic::Status;
use tonic::body::Body;

/// Length of what stands before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// Messages as they arrive (gRPC over HTTP/2, "Length-Prefixed-Message").
pub(super) struct Requests<M> {
    body: Body,
    /// What arrived of messages that are not whole; holds no memory between messages.
    buffer: BytesMut,
    limit: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message + Default> Requests<M> {
    /// Reads `body`; a message of more than `limit` bytes ends it.
    pub(super) fn new(body: Body, limit: usize) -> Self {
        Self { body, buffer: BytesMut::new(), limit, message: PhantomData }
    }

    /// The next message; `None` when the client is done. Cancel safe.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` for a message over the limit, `UNIMPLEMENTED` for a compressed one, `INTERNAL` for one that is
    /// no protobuf or ends in its middle, and whatever status the transport gives.
    pub(super) async fn next(&mut self) -> Result<Option<M>, Status> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Status>> {
        loop {
            if let Some(message) = self.take()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(frame) => {
                    // Trailers say nothing in a request.
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                None if self.buffer.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Status::internal("the stream ended within a message"))),
            }
        }
    }

    /// A whole message, if one is there.
    fn take(&mut self) -> Result<Option<M>, Status> {
        let Some((prefix, rest)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let [compressed, length @ ..] = *prefix;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed requests are not read"));
        }
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length > self.limit {
            let limit = self.limit;
            return Err(Status::resource_exhausted(format!(
                "a request of {length} bytes; at most {limit} are read"
            )));
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        let message =
            M::decode(message).map_err(|error| Status::internal(format!("not a request: {error}")))?;
        self.buffer.advance(PREFIX + length);
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        Ok(Some(message))
    }
}

impl<M> std::fmt::Debug for Requests<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests").field("buffered", &self.buffer.len()).field("limit", &self.limit).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::Frame;
    use proptest::prelude::*;
    use tonic::Code;

    use super::*;
    use crate::pb::envoy::service::discovery::v3::DiscoveryRequest;

    struct Chunks(VecDeque<Vec<u8>>);

    impl http_body::Body for Chunks {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(Bytes::from(chunk)))))
        }
    }

    fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
        let mut bytes = vec![flag];
        bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(message);
        bytes
    }

    fn read(bytes: &[u8], chunk: usize, limit: usize) -> Result<Vec<String>, Status> {
        let chunks = bytes.chunks(chunk.max(1)).map(<[u8]>::to_vec).collect();
        let mut requests = Requests::<DiscoveryRequest>::new(Body::new(Chunks(chunks)), limit);
        let mut read = Vec::new();
        let mut context = Context::from_waker(std::task::Waker::noop());
        loop {
            match requests.poll_next(&mut context) {
                Poll::Ready(Ok(Some(message))) => read.push(message.type_url),
                Poll::Ready(Ok(None)) => return Ok(read),
                Poll::Ready(Err(status)) => return Err(status),
                Poll::Pending => unreachable!("chunks are always there"),
            }
        }
    }

    fn request(type_url: &str) -> Vec<u8> {
        DiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn what_is_wrong_has_its_own_status() {
        let good = request("a");
        let code = |bytes: &[u8]| read(bytes, 3, 100).unwrap_err().code();
        assert_eq!(code(&framed(1, &good)), Code::Unimplemented);
        assert_eq!(code(&framed(0, &[0xff; 20])), Code::Internal);
        assert_eq!(code(&framed(0, &[0; 101])), Code::ResourceExhausted);
        assert_eq!(code(&[0, 0xff, 0xff, 0xff, 0xff]), Code::ResourceExhausted, "before any of it is read");
        assert_eq!(code(&framed(0, &good)[..6]), Code::Internal);
        assert_eq!(read(&[], 1, 100).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn nothing_stays_allocated_between_messages() {
        let bytes = framed(0, &request(&"n".repeat(50_000)));
        let body = Body::new(Chunks(VecDeque::from([bytes])));
        let mut requests = Requests::<DiscoveryRequest>::new(body, 1 << 20);
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(requests.poll_next(&mut context), Poll::Ready(Ok(Some(_)))));
        assert_eq!(requests.buffer.capacity(), 0);
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(names in proptest::collection::vec("[a-z]{0,40}", 0..8), chunk in 1_usize..64) {
            let bytes: Vec<u8> = names.iter().flat_map(|name| framed(0, &request(name))).collect();
            prop_assert_eq!(read(&bytes, chunk, 1 << 20).unwrap(), names);
        }

        #[test]
        fn any_bytes_end_in_messages_or_a_status(bytes in proptest::collection::vec(any::<u8>(), 0..200), chunk in 1_usize..64) {
            let _ = read(&bytes, chunk, 64);
        }
    }
}
