//! Listener filters: what peeking at the first bytes tells. Nothing is consumed.

use std::{io, os::fd::AsRawFd, sync::Arc};

use nix::sys::socket::{MsgFlags, recv};
use tokio::{io::Interest, net::TcpStream};

use super::{http_peek, tls_peek};
use crate::config::{ListenerFilters, TransportProtocol};

/// Most bytes that are looked at.
const LIMIT: usize = 16 * 1024;

/// What was learnt.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    pub(crate) tls: bool,
    pub(crate) server_name: Option<Arc<str>>,
    /// The client's ALPN offer, or what the HTTP inspector saw.
    pub(crate) protocols: Vec<Arc<str>>,
    /// Plain HTTP/2 with prior knowledge.
    pub(crate) http2_preface: bool,
}

impl Inspected {
    pub(crate) fn transport(&self) -> TransportProtocol {
        if self.tls { TransportProtocol::Tls } else { TransportProtocol::RawBuffer }
    }
}

/// What a look at the bytes so far says.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// Decided.
    Done(T),
    /// More bytes may decide.
    More,
}

/// Runs the inspectors that are on for this port. `None` when the connection must be closed (timeout without
/// `continue_on_timeout`).
pub(crate) async fn inspect(
    stream: &TcpStream,
    filters: &ListenerFilters,
    port: u16,
) -> io::Result<Option<Inspected>> {
    let on = |f: &Option<crate::config::Inspector>| f.as_ref().is_some_and(|i| !i.disabled.matches(port));
    let (tls, http) = (on(&filters.tls_inspector), on(&filters.http_inspector));
    let mut found = Inspected::default();
    if !tls && !http {
        return Ok(Some(found));
    }
    let look = async {
        if tls {
            peek_until(stream, |bytes| tls_peek::look(bytes, &mut found)).await?;
        }
        if http && !found.tls {
            peek_until(stream, |bytes| http_peek::look(bytes, &mut found)).await?;
        }
        Ok::<_, io::Error>(())
    };
    match filters.timeout {
        None => look.await?,
        Some(limit) => match tokio::time::timeout(limit, look).await {
            Ok(done) => done?,
            Err(_elapsed) if filters.continue_on_timeout => {}
            Err(_elapsed) => return Ok(None),
        },
    }
    Ok(Some(found))
}

/// Peeks until `look` decides, the peer closes, or the limit is reached.
async fn peek_until(stream: &TcpStream, mut look: impl FnMut(&[u8]) -> Look<()>) -> io::Result<()> {
    let mut buffer = vec![0; 2048];
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let ended = ready.is_read_closed();
        // Readiness must be given up until new bytes arrive, or this would spin on the bytes already seen.
        let seen = stream.try_io(Interest::READABLE, || {
            let n = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_PEEK).map_err(io::Error::from)?;
            if n == 0 {
                return Ok(true);
            }
            let full = n == buffer.len();
            match look(&buffer[..n]) {
                Look::Done(()) => Ok(true),
                Look::More if n >= LIMIT || ended => Ok(true),
                Look::More if full => {
                    let larger = (buffer.len() * 2).min(LIMIT);
                    buffer.resize(larger, 0);
                    Ok(false)
                }
                Look::More => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match seen {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Looks at a connection about to be served as TLS whose listener did not inspect it.
pub(crate) async fn client_hello(stream: &TcpStream) -> io::Result<Inspected> {
    let mut found = Inspected::default();
    peek_until(stream, |bytes| tls_peek::look(bytes, &mut found)).await?;
    Ok(found)
}

/// Whether a plain connection begins with HTTP/2's preface.
pub(crate) async fn is_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut found = Inspected::default();
    peek_until(stream, |bytes| http_peek::look(bytes, &mut found)).await?;
    Ok(found.http2_preface)
}
