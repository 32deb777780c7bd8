//! A body that is passed on while somebody looks at its frames.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::{Body, BodyError};

/// Looks at a body that passes by.
pub(crate) trait Observe: Send + Unpin + 'static {
    /// A frame passed.
    fn frame(&mut self, frame: &Frame<Bytes>);

    /// Nothing more will pass: the body has ended, well or not.
    fn end(&mut self, complete: bool);
}

/// The one wrapper for bodies that are counted, copied or watched.
pub(crate) struct Observed<O> {
    body: Body,
    observer: O,
}

impl<O: Observe> Observed<O> {
    /// Wraps; a body that has ended already is not wrapped, and its observer is told at once.
    pub(crate) fn wrap(body: Body, mut observer: O) -> Body {
        if body.is_end_stream() {
            observer.end(true);
            return body;
        }
        Body::wrap(Self { body, observer })
    }
}

impl<O: Observe> HttpBody for Observed<O> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                this.observer.frame(frame);
                // Whoever reads may stop at the last frame and never ask for the end.
                if frame.is_trailers() || this.body.is_end_stream() {
                    this.observer.end(true);
                }
            }
            Some(Err(_)) => this.observer.end(false),
            None => this.observer.end(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
