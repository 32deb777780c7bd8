//! The backend: the smallest HTTP/1.1 server that answers 200 with a fixed body, so that it costs little.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The body of every answer: 109 bytes.
const BODY: &str = "{\"service\":\"backend\",\"message\":\"the quick brown fox jumps over the lazy dog and then \
                    rests.\",\"items\":[1,2,3]}";
/// Longest request head.
const MAX_HEAD: usize = 16 << 10;

/// The whole answer.
pub(crate) fn answer() -> String {
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream));
    }
}

async fn connection(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let answer = answer();
    let mut buffer = Vec::with_capacity(MAX_HEAD);
    loop {
        if stream.read_buf(&mut buffer).await? == 0 || buffer.len() > MAX_HEAD {
            return Ok(());
        }
        while let Some(end) = head_end(&buffer) {
            buffer.drain(..end);
            stream.write_all(answer.as_bytes()).await?;
        }
    }
}

/// Length of the first head, its empty line included.
pub(crate) fn head_end(buffer: &[u8]) -> Option<usize> {
    buffer.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_what_the_readme_says() {
        assert_eq!(BODY.len(), 109);
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n\r\nx"), Some(18));
    }
}
