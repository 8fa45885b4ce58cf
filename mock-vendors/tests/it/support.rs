//! A client of a few lines that shows what was on the wire, faults and all.

use std::time::Duration;

use mock_vendors::MockVendors;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) async fn start() -> MockVendors {
    MockVendors::start("127.0.0.1:0").await.expect("a free port")
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("UTF-8")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// A connection that has sent this request and asked for its own end.
pub(crate) async fn sent(mock: &MockVendors, line: &str, headers: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(mock.address()).await.expect("connects");
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: mock\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.expect("sends");
    stream
}

/// Everything that came back until the connection ended.
pub(crate) async fn raw(mock: &MockVendors, line: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = sent(mock, line, "", "{}").await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.map(|_| bytes)
}

pub(crate) async fn ask_with(mock: &MockVendors, line: &str, headers: &str, body: &str) -> Reply {
    let mut stream = sent(mock, line, headers, body).await;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("an answer");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("the end of the head");
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head in ASCII");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head, body: bytes[end + 4..].to_vec() }
}

pub(crate) async fn ask(mock: &MockVendors, line: &str, body: &str) -> Reply {
    ask_with(mock, line, "", body).await
}

pub(crate) async fn get(mock: &MockVendors, path: &str) -> Value {
    ask(mock, &format!("GET {path}"), "").await.json()
}

pub(crate) const SECOND: Duration = Duration::from_secs(1);
