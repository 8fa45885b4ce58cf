//! How long clients may keep a connection waiting: here milliseconds, in the service seconds.

use std::{path::Path, time::Duration};

use axum::{Router, routing::get};
use fetchgate::api::{
    memory::Memory,
    server::{Door, TimeOuts, serve},
    tls::Tls,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::failure::LONG;

const SHORT: Duration = Duration::from_millis(50);
const ASKS: &[u8] = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n";

/// A port with these time-outs, whose answers are as large, and one client of it.
struct Port {
    serving: JoinSet<()>,
    stop: CancellationToken,
    client: TcpStream,
}

impl Port {
    async fn open(tls: Option<Tls>, times: TimeOuts, answer: usize) -> Port {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("the port");
        let routes = Router::new().route("/", get(move || async move { vec![b'x'; answer] }));
        let door = Door { tls, times, ..Door::plain(&Memory::default()) };
        let (mut serving, stop) = (JoinSet::new(), CancellationToken::new());
        serving.spawn(serve(listener, routes, door, stop.clone()));
        Port { serving, stop, client: TcpStream::connect(address).await.expect("it listens") }
    }

    /// What else the client is sent until its connection is closed.
    async fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(LONG / 2, self.client.read_to_end(&mut rest)).await;
        // The end may be a reset.
        let _ = read.expect("the connection is closed");
        String::from_utf8_lossy(&rest).into_owned()
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let mut port = Port::open(None, TimeOuts { head: SHORT, ..TimeOuts::default() }, 1).await;
    port.client.write_all(&ASKS[..30]).await.expect("sent");
    assert!(!port.rest().await.contains(" 200 "));
}

#[tokio::test]
async fn a_connection_without_a_next_request_is_closed() {
    let mut port = Port::open(None, TimeOuts { head: SHORT, ..TimeOuts::default() }, 1).await;
    port.client.write_all(ASKS).await.expect("sent");
    let answer = port.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nx"), "{answer}");
}

#[tokio::test]
async fn a_handshake_that_does_not_begin_is_not_waited_for() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/data");
    let tls = Tls::open(&data.join("one.pem"), &data.join("one.key")).expect("good files");
    let mut port = Port::open(Some(tls), TimeOuts { handshake: SHORT, ..TimeOuts::default() }, 1).await;
    assert_eq!(port.rest().await, "");
}

#[tokio::test]
async fn an_answer_that_nobody_reads_is_given_up() {
    // Larger than what both kernels keep.
    let mut port = Port::open(None, TimeOuts { answer: SHORT, ..TimeOuts::default() }, 64 << 20).await;
    port.client.write_all(ASKS).await.expect("sent");
    port.client.read_u8().await.expect("the answer begins");
    // A stop waits for every answer that is under way.
    port.stop.cancel();
    let stopped = tokio::time::timeout(LONG / 2, port.serving.join_next()).await;
    stopped.expect("it does not wait for this client").expect("it ran").expect("no panic");
}

#[tokio::test]
async fn an_answer_that_is_read_slowly_is_sent_whole() {
    let (most, size) = (Duration::from_secs(5), 8 << 20);
    let mut port = Port::open(None, TimeOuts { answer: most, ..TimeOuts::default() }, size).await;
    port.client.write_all(ASKS).await.expect("sent");
    let (mut read, mut piece) = (0, vec![0; 64 << 10]);
    while read < size {
        read += port.client.read(&mut piece).await.expect("more of it");
        tokio::task::yield_now().await;
    }
    port.stop.cancel();
    assert!(port.rest().await.bytes().all(|byte| byte == b'x'));
}
