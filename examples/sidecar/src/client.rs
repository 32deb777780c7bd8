//! `request` and `wait`: what lifecycle hooks call.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::Full;
use tokio::time::{Instant, sleep_until, timeout};

use crate::args::{RequestArgs, WaitArgs};
use crate::http::Outgoing;

/// Longest time for one `request`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer of `request`: a configuration dump of a large mesh.
const ANSWER_LIMIT: usize = 256 << 20;

/// Sends one request to 127.0.0.1.
///
/// # Errors
/// The connection or the exchange failed, or the arguments do not form a request.
pub async fn request(args: &RequestArgs) -> std::io::Result<Response<Bytes>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let out = Outgoing { address, source: None, limit: ANSWER_LIMIT };
    let request = Request::builder()
        .method(args.method.as_str())
        .uri(args.path.as_str())
        .header("host", address.to_string())
        .body(Full::default())
        .map_err(std::io::Error::other)?;
    timeout(REQUEST_TIMEOUT, out.send(request)).await?
}

/// Polls until the URL answers 200.
///
/// # Errors
/// The URL is not `http://host:port/path` or the time is over; the text tells what was seen last.
pub async fn wait(args: &WaitArgs) -> Result<(), String> {
    let uri: Uri = args.url.parse().map_err(|e| format!("{:?} is not a URL: {e}", args.url))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{:?} is not an http:// URL", args.url));
    }
    let host = uri.host().ok_or_else(|| format!("{:?} names no host", args.url))?;
    let port = uri.port_u16().unwrap_or(80);
    let deadline = Instant::now() + Duration::from_secs(args.timeout_seconds);
    let period = Duration::from_millis(args.period_millis);
    let patience = Duration::from_millis(args.request_timeout_millis);
    loop {
        let next = Instant::now() + period;
        let seen = match timeout(patience, poll(host, port, &uri)).await {
            Ok(Ok(200)) => return Ok(()),
            Ok(Ok(status)) => format!("status {status}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".into(),
        };
        if next >= deadline {
            return Err(format!("not ready after {} s: {seen}", args.timeout_seconds));
        }
        sleep_until(next).await;
    }
}

async fn poll(host: &str, port: u16, uri: &Uri) -> std::io::Result<u16> {
    let name = host.trim_matches(['[', ']']);
    let address = tokio::net::lookup_host((name, port)).await?.next().ok_or(std::io::ErrorKind::NotFound)?;
    let out = Outgoing { address, source: None, limit: 1 << 20 };
    let path = uri.path_and_query().map_or("/", |p| p.as_str());
    let request = Request::get(path)
        .header("host", format!("{host}:{port}"))
        .body(Full::default())
        .map_err(std::io::Error::other)?;
    Ok(out.send(request).await?.status().as_u16())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_ends() {
        let url = "http://127.0.0.1:1/x".to_owned();
        let error = wait(&WaitArgs { url, timeout_seconds: 2, ..WaitArgs::default() }).await.unwrap_err();
        assert!(error.starts_with("not ready after 2 s"), "{error}");
        assert!(wait(&WaitArgs { url: "nonsense".into(), ..WaitArgs::default() }).await.is_err());
    }
}
