//! Reading bodies within two bounds: the size of one, and the memory of all that a server reads at the same time.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http_body::Body as HttpBody;
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A whole body. Its bytes count against the server's memory for bodies until it is dropped.
#[derive(Debug, Default)]
pub(in crate::serve) struct Body {
    bytes: Bytes,
    _share: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Why there is no body.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BodyError {
    /// It is larger than what is read.
    #[error("the body exceeds {most} bytes")]
    TooLarge {
        /// What is read.
        most: usize,
    },
    /// The connection failed.
    #[error("the body cannot be read: {message}")]
    Broken {
        /// How.
        message: String,
    },
}

/// Read a body of at most `most` bytes. While `memory` (a permit for each byte) is used up by other bodies, this one waits,
/// and so does its sender: what is not read is not sent either.
pub(super) async fn read<B>(mut body: B, most: usize, memory: &Arc<Semaphore>) -> Result<Body, BodyError>
where
    B: HttpBody<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    let mut bytes = BytesMut::new();
    let mut share: Option<OwnedSemaphorePermit> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| BodyError::Broken { message: error.to_string() })?;
        let Ok(chunk) = frame.into_data() else { continue };
        if chunk.len() > most - bytes.len() {
            return Err(BodyError::TooLarge { most });
        }
        let length = u32::try_from(chunk.len()).map_err(|_| BodyError::TooLarge { most })?;
        let Ok(more) = Arc::clone(memory).acquire_many_owned(length).await else {
            return Err(BodyError::Broken { message: "the server stops".to_owned() });
        };
        match &mut share {
            Some(share) => share.merge(more),
            None => share = Some(more),
        }
        // A copy: a chunk of one byte may hold on to a whole read buffer.
        bytes.extend_from_slice(&chunk);
    }
    Ok(Body { bytes: bytes.freeze(), _share: share })
}
