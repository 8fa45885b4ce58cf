//! A reader of Server-Sent Events, on a connection of its own: it takes what comes, when it comes.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use mongodb::bson::{Binary, DateTime, Document, doc, spec::BinarySubtype};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::TestApp;

/// Longer than anything takes that does not hang.
const LONG: Duration = Duration::from_secs(30);

/// What came between two empty lines.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Told {
    pub(crate) id: Option<String>,
    /// Empty for a comment, and for an id alone.
    pub(crate) event: String,
    pub(crate) data: Value,
    pub(crate) is_comment: bool,
}

/// An open stream.
pub(crate) struct EventStream {
    connection: TcpStream,
    /// As it came: a head, then pieces with their lengths before them.
    raw: Vec<u8>,
    text: String,
    pub(crate) head: String,
    /// The last id that came.
    pub(crate) last_id: Option<String>,
}

impl EventStream {
    /// Asks, and waits for the head of the answer; nothing if nobody listens there, or the connection breaks.
    pub(crate) async fn try_open(address: &str, path: &str, headers: &[(&str, &str)]) -> Option<EventStream> {
        let connection = TcpStream::connect(address).await.ok()?;
        EventStream::on(connection, path, headers).await
    }

    /// The same on this connection.
    pub(crate) async fn on(mut connection: TcpStream, path: &str, headers: &[(&str, &str)]) -> Option<EventStream> {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let asks = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
        connection.write_all(asks.as_bytes()).await.ok()?;
        let mut stream =
            EventStream { connection, raw: Vec::new(), text: String::new(), head: String::new(), last_id: None };
        let end = loop {
            if let Some(end) = stream.raw.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end;
            }
            stream.take().await?;
        };
        stream.head = String::from_utf8(stream.raw.drain(..end + 4).collect()).expect("text").to_ascii_lowercase();
        Some(stream)
    }

    pub(crate) fn status(&self) -> &str {
        &self.head[9..12]
    }

    /// Reads some bytes; nothing at the end. Cancel-safe.
    async fn take(&mut self) -> Option<()> {
        let read = self.connection.read_buf(&mut self.raw).await.ok()?;
        (read > 0).then_some(())
    }

    /// The next piece, if it is there; false at the end of the answer.
    fn unpack(&mut self) -> bool {
        loop {
            let Some(line) = self.raw.windows(2).position(|bytes| bytes == b"\r\n") else { return true };
            let length = std::str::from_utf8(&self.raw[..line]).expect("a number");
            let length = usize::from_str_radix(length, 16).expect("a length");
            if length == 0 {
                return false;
            }
            if self.raw.len() < line + 2 + length + 2 {
                return true;
            }
            let piece: Vec<u8> = self.raw.drain(..line + 2 + length + 2).skip(line + 2).take(length).collect();
            self.text.push_str(std::str::from_utf8(&piece).expect("text"));
        }
    }

    /// What comes next, comments too; nothing when the stream has ended. Cancel-safe.
    pub(crate) async fn next_of_all(&mut self) -> Option<Told> {
        loop {
            if let Some((told, rest)) = self.text.split_once("\n\n") {
                let told = read(told);
                self.text = rest.to_owned();
                if told.id.is_some() {
                    self.last_id.clone_from(&told.id);
                }
                return Some(told);
            }
            let goes_on = self.unpack();
            if self.text.contains("\n\n") {
                continue;
            }
            if !goes_on {
                return None;
            }
            self.take().await?;
        }
    }

    /// The next event; nothing when the stream has ended. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        loop {
            let told = self.next_of_all().await?;
            if !told.event.is_empty() {
                return Some(told);
            }
        }
    }

    /// The next event, or nothing at the end of the stream, of a service on a clock of the test: it goes on until something comes.
    pub(crate) async fn next_while_time_passes(&mut self, app: &TestApp) -> Option<Told> {
        let waiting = async {
            loop {
                match tokio::time::timeout(Duration::from_millis(50), self.next()).await {
                    Ok(told) => return told,
                    Err(_) => app.clock.advance(Duration::from_millis(500)),
                }
            }
        };
        tokio::time::timeout(LONG, waiting).await.expect("an event, or the end")
    }
}

fn read(block: &str) -> Told {
    let mut told = Told::default();
    for line in block.lines() {
        let (name, value) = line.split_once(':').expect("a field");
        let value = value.strip_prefix(' ').unwrap_or(value);
        match name {
            "" => told.is_comment = true,
            "id" => told.id = Some(value.to_owned()),
            "event" => told.event = value.to_owned(),
            "data" => told.data = serde_json::from_str(value).expect("JSON"),
            "retry" => assert!(value.parse::<u64>().is_ok(), "{line}"),
            other => panic!("no field of a stream: {other}"),
        }
    }
    told
}

/// Events by their ids, each with its data.
pub(crate) type Seen = Arc<Mutex<BTreeMap<String, Value>>>;

/// Reads all events until it is aborted, whatever becomes of the service: it connects again, and goes on where it was.
pub(crate) async fn read_for_ever(address: SocketAddr, seen: Seen) {
    let mut last: Option<String> = None;
    loop {
        let headers: Vec<(&str, &str)> = last.iter().map(|id| ("last-event-id", id.as_str())).collect();
        let opened = EventStream::try_open(&address.to_string(), "/events", &headers).await;
        let Some(mut stream) = opened.filter(|stream| stream.status() == "200") else {
            // Between two tries of a real reader; the process is about to start.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        while let Some(told) = stream.next_of_all().await {
            match told.event.as_str() {
                "" => {}
                // What was left out comes after this.
                "lag" => break,
                "job" => {
                    let id = told.id.clone().expect("an event has an id");
                    let before = seen.lock().expect("no panic").insert(id, told.data.clone());
                    let is_same = |before: &Value| {
                        before["request_id"] == told.data["request_id"] && before["status"] == told.data["status"]
                    };
                    assert!(before.as_ref().is_none_or(is_same), "two events have one id: {before:?} {told:?}");
                }
                other => panic!("{other}"),
            }
        }
        last = stream.last_id.or(last);
    }
}

/// The jobs whose end was seen.
pub(crate) fn ended(seen: &Seen) -> BTreeSet<String> {
    let seen = seen.lock().expect("no panic");
    let ended = seen.values().filter(|data| data["status"] != "processing");
    ended.map(|data| data["request_id"].as_str().expect("an id").to_owned()).collect()
}

impl TestApp {
    /// Stores the events of so many jobs that have ended long ago, one a millisecond.
    pub(crate) async fn store_old_events(&self, count: usize) {
        if self.redis.is_none() {
            let file = rusqlite::Connection::open(self.store_path()).expect("the file");
            file.busy_timeout(LONG).expect("set");
            file.execute("INSERT OR IGNORE INTO lanes (vendor, priority, tenant) VALUES ('sync', 1, 'old')", [])
                .expect("a lane");
            file.execute(
                "WITH RECURSIVE c (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ?1)
                 INSERT INTO jobs (n, id, lane, status, stage, due_at, updated_at, finished_at, payload, event)
                 SELECT (SELECT coalesce(max(n), 0) FROM jobs) + 1000000 + i, randomblob(16), (SELECT max(lane) FROM lanes),
                        2, 3, 0, 0, 0, x'31', (SELECT coalesce(max(event), 0) FROM jobs) + i FROM c",
                [count],
            )
            .expect("jobs");
            return;
        }
        let name = super::database(&self.folder);
        let client = mongodb::Client::with_uri_str(super::servers::mongo().mongo_url(&name)).await.expect("MongoDB");
        let jobs = client.database(&name).collection::<Document>("jobs");
        let job = |i: usize| {
            let id = Binary { subtype: BinarySubtype::Generic, bytes: fastrand::u128(..).to_be_bytes().to_vec() };
            doc! {
                "_id": id, "vendor": "sync", "tenant": "old", "status": "complete", "due_at": 0_i64, "finished_at": 0_i64,
                "event_at": DateTime::from_millis(i as i64),
            }
        };
        for slice in (0..count).collect::<Vec<_>>().chunks(10_000) {
            jobs.insert_many(slice.iter().map(|i| job(*i))).await.expect("MongoDB takes them");
        }
    }
}
