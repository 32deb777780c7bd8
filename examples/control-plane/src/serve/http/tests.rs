//! What one peer, or a thousand idle ones, can take from the others: nothing for long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use http_body_util::BodyExt as _;
use hyper::client::conn::{http1, http2};
use tokio::io::DuplexStream;
use tokio::time::Instant;

use super::body::BodyError;
use super::*;

/// Counts its calls and answers those that it has a permit for.
struct Waiter {
    calls: AtomicUsize,
    unread: AtomicUsize,
    answers: Semaphore,
}

impl Handler for Arc<Waiter> {
    fn max_body(&self) -> usize {
        8
    }

    fn unread(&self) {
        self.unread.fetch_add(1, Ordering::SeqCst);
    }

    async fn handle(&self, call: Call) -> Answer {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.answers.acquire().await.expect("open").forget();
        text(StatusCode::OK, String::from_utf8_lossy(&call.body).into_owned())
    }
}

/// A server of one connection, and the peer's end of it.
async fn served(http2: bool, answers: usize) -> (DuplexStream, Arc<Waiter>, watch::Sender<bool>) {
    let (theirs, ours) = tokio::io::duplex(1 << 16);
    let (stopping, stop) = watch::channel(false);
    let waiter = Arc::new(Waiter {
        calls: AtomicUsize::default(),
        unread: AtomicUsize::default(),
        answers: Semaphore::new(answers),
    });
    let memory = Arc::new(Semaphore::new(1024));
    let server = Server { handler: Arc::new(Arc::clone(&waiter)), memory, stop };
    let place = Connections::new(1).admit().await;
    tokio::spawn(server.connection(ours, http2, ([127, 0, 0, 1], 1).into(), place));
    (theirs, waiter, stopping)
}

fn post(body: &'static str) -> Request<Full<Bytes>> {
    Request::post("http://x/").header("host", "x").body(Full::from(body)).expect("a request")
}

#[tokio::test(start_paused = true)]
async fn an_idle_http2_connection_is_closed_and_a_used_one_is_not() {
    let (stream, _, _stopping) = served(true, 100).await;
    let (mut sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    let mut connection = tokio::spawn(connection);
    let start = Instant::now();
    for _ in 0..3 {
        let answer = sender.send_request(post("hello")).await.expect("an answer");
        assert_eq!(answer.into_body().collect().await.expect("a body").to_bytes(), "hello");
        tokio::time::sleep(IDLE_TIMEOUT - Duration::from_secs(1)).await;
        assert!(!connection.is_finished(), "it was used in time");
    }
    let used = start.elapsed();
    (&mut connection).await.expect("no panic").expect("an orderly end");
    assert!(start.elapsed() - used <= Duration::from_secs(1) + LEAVE_TIMEOUT, "{:?}", start.elapsed() - used);
}

#[tokio::test(start_paused = true)]
async fn streams_of_a_connection_are_bounded() {
    let (stream, waiter, _stopping) = served(true, 0).await;
    let (sender, connection) =
        http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await.expect("HTTP/2");
    tokio::spawn(connection);
    let most = usize::try_from(MAX_STREAMS).expect("small");
    let mut answers = JoinSet::new();
    for _ in 0..most + 5 {
        let mut sender = sender.clone();
        answers.spawn(async move { sender.send_request(post("x")).await.expect("an answer").status() });
    }
    // Time moves only when nothing else can.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(waiter.calls.load(Ordering::SeqCst), most);
    waiter.answers.add_permits(most + 5);
    while let Some(status) = answers.join_next().await {
        assert_eq!(status.expect("no panic"), StatusCode::OK);
    }
    assert_eq!(waiter.calls.load(Ordering::SeqCst), most + 5, "those that waited were served as well");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_end_and_one_that_is_too_large() {
    let endless = tokio_stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
    let endless = http_body_util::StreamBody::new(endless);
    let (stream, waiter, _stopping) = served(false, 1).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let start = Instant::now();
    let request = Request::post("/").header("host", "x").body(endless);
    let answer = sender.send_request(request.expect("a request")).await.expect("an answer");
    assert_eq!((answer.status(), start.elapsed()), (StatusCode::REQUEST_TIMEOUT, BODY_TIMEOUT));

    let (stream, again, _stopping) = served(false, 1).await;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let answer = sender.send_request(post("123456789")).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    let body = answer.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(body, "the body exceeds 8 bytes\n");
    for waiter in [waiter, again] {
        assert_eq!((waiter.calls.load(Ordering::SeqCst), waiter.unread.load(Ordering::SeqCst)), (0, 1));
    }
}

#[tokio::test]
async fn bodies_share_the_memory_of_the_server() {
    let memory = Arc::new(Semaphore::new(10));
    let body = |text: &'static str| Full::<Bytes>::from(text);
    let first = body::read(body("123456"), 100, &memory).await.expect("room");
    assert_eq!((&*first, memory.available_permits()), (&b"123456"[..], 4));
    let mut second = std::pin::pin!(body::read(body("12345"), 100, &memory));
    assert!(poll_once(second.as_mut()).await.is_pending(), "there is room for four bytes");
    drop(first);
    assert_eq!(&*second.await.expect("room now"), b"12345");
    assert_eq!(memory.available_permits(), 10, "dropped bodies give back what they took");
    let refused = body::read(body("12345"), 4, &memory).await.map(|body| body.len());
    assert_eq!(refused, Err(BodyError::TooLarge { most: 4 }));
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

#[tokio::test(start_paused = true)]
async fn the_idlest_connection_makes_room() {
    let places = Connections::new(3);
    let oldest = places.admit().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let idle = places.admit().await;
    let younger = places.admit().await;
    let _busy = oldest.busy();
    let mut more = std::pin::pin!(places.admit());
    let asked = tokio::select! {
        _ = &mut more => panic!("all places are taken"),
        () = oldest.over(IDLE_TIMEOUT) => "the busy one",
        () = idle.over(IDLE_TIMEOUT) => "the idlest one",
        () = younger.over(IDLE_TIMEOUT) => "the younger one",
    };
    assert_eq!(asked, "the idlest one");
    drop(idle);
    let _more = more.await;
}

/// A peer that opens as many connections as there are places and says nothing does not keep the next one out.
#[tokio::test]
async fn silent_connections_do_not_exhaust_the_port() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (_stopping, stop) = watch::channel(false);
    let waiter = Arc::new(Waiter {
        calls: AtomicUsize::default(),
        unread: AtomicUsize::default(),
        answers: Semaphore::new(100),
    });
    let most = 16;
    tokio::spawn(accept(listener, None, Arc::new(Arc::clone(&waiter)), stop, most));
    let start = std::time::SystemTime::now();
    let mut silent = Vec::new();
    for _ in 0..3 * most {
        silent.push(tokio::net::TcpStream::connect(address).await.expect("a connection"));
    }
    let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tokio::spawn(connection);
    let answer = sender.send_request(post("hello")).await.expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    let waited = start.elapsed().expect("time goes on");
    assert!(waited < HEAD_TIMEOUT / 2, "{waited:?}: somebody else's timeout made room");
}
