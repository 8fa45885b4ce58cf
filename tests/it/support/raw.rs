//! A vendor that sends bytes as they are: replies that are cut off, slow, or no HTTP at all.

use std::{sync::Arc, sync::Mutex, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What one call gets, in order; the last one goes on for ever.
#[derive(Debug, Clone)]
pub(crate) enum Raw {
    /// These bytes, and the end of the connection.
    Cut(Vec<u8>),
    /// These bytes, and then nothing for as long as anybody waits.
    Stall(Vec<u8>),
}

/// A running vendor; it ends when it is dropped.
pub(crate) struct RawVendor {
    pub(crate) url: String,
    requests: Arc<Mutex<Vec<String>>>,
    _tasks: JoinSet<()>,
}

impl RawVendor {
    pub(crate) async fn start(answers: Vec<Raw>) -> RawVendor {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("the port"));
        let (requests, mut tasks) = (Arc::new(Mutex::new(Vec::new())), JoinSet::new());
        let counted = requests.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, answers.clone(), counted.clone()));
            }
        });
        RawVendor { url, requests, _tasks: tasks }
    }

    pub(crate) fn calls(&self) -> usize {
        self.requests.lock().expect("nobody panics").len()
    }

    /// What came, as it was sent.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("nobody panics").clone()
    }
}

async fn serve(mut stream: TcpStream, answers: Vec<Raw>, counted: Arc<Mutex<Vec<String>>>) {
    let mut request = [0; 4096];
    // The requests of these tests come in one piece. A connection that is only kept warm brings none.
    let read = stream.read(&mut request).await.unwrap_or_default();
    if read == 0 {
        return;
    }
    let answer = {
        let mut requests = counted.lock().expect("nobody panics");
        requests.push(String::from_utf8_lossy(&request[..read]).into_owned());
        answers[(requests.len() - 1).min(answers.len() - 1)].clone()
    };
    match answer {
        Raw::Cut(bytes) => drop(stream.write_all(&bytes).await),
        Raw::Stall(bytes) => {
            let _ = stream.write_all(&bytes).await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }
}
