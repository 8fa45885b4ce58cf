//! A wire-tap before MongoDB: passes everything on and counts the statements by name.
//!
//! Not every server that speaks its protocol counts them itself. Never changes or delays on purpose what passes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
};

/// Length, ids and kind of a message.
const HEADER: usize = 16;
/// Where the name of an OP_MSG's first element begins: header, flags, section kind, length of the document, type of the element.
const NAME_AT: usize = HEADER + 4 + 1 + 4 + 1;

type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

/// Dropping it ends its connections.
pub(crate) struct Tap {
    pub(crate) port: u16,
    counts: Counts,
    _tasks: JoinSet<()>,
}

impl Tap {
    pub(crate) async fn before(server: u16) -> anyhow::Result<Tap> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let counts = Counts::default();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, server, counts.clone()));
        Ok(Tap { port, counts, _tasks: tasks })
    }

    /// Statements so far; how drivers keep connections alive is left out.
    pub(crate) fn statements(&self) -> f64 {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let work = counts
            .iter()
            .filter(|(name, _)| !["hello", "isMaster", "ismaster", "ping", "endSessions"].contains(&name.as_str()));
        work.map(|(_, count)| *count as f64).sum()
    }
}

async fn accept(listener: TcpListener, server: u16, counts: Counts) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { return };
        connections.spawn(relay(client, server, counts.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn relay(client: TcpStream, server: u16, counts: Counts) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    // Small messages must not wait for company.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, mut to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    tokio::select! {
        // Either side may close at any time, and then it is over.
        _ = count(from_client, to_server, counts) => {}
        _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
    }
}

async fn count(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counts: Counts) -> std::io::Result<()> {
    loop {
        let mut message = vec![0; HEADER];
        from.read_exact(&mut message).await?;
        let length = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        // MongoDB's own bound is 48 MB.
        message.resize((length as usize).clamp(HEADER, 48 << 20), 0);
        from.read_exact(&mut message[HEADER..]).await?;
        to.write_all(&message).await?;
        let name = message.get(NAME_AT..).unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        *counts.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
    }
}
