//! Real servers behind the second backend: `redis-server`, and `mongod` or else SecantusDB, which speaks the same wire.
//!
//! Never left behind: each dies with the test, or with the process of the tests, however that ends, and its folder with it.
//! `scripts/with-servers` installs what is missing.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use fetchgate::redis_link::{Redis, RedisUrl};
use tempfile::TempDir;

/// How long a server may take to listen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server with a port and a folder of its own.
pub(crate) struct Server {
    pub(crate) port: u16,
    child: Child,
    /// Waits for this process to end, and ends the server then: nobody drops a `static`, or anything when a process is killed.
    watcher: Child,
    folder: TempDir,
    arguments: Vec<String>,
}

/// The Redis of all tests that do it no harm; each has a name of its own, which all its keys begin with.
pub(crate) fn redis() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::redis)
}

/// A name that no other test uses.
pub(crate) fn prefix() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The MongoDB of all tests that do it no harm; each has a database of its own.
pub(crate) fn mongo() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::mongo)
}

impl Server {
    /// A Redis that keeps what it is told when it is killed. No machine crashes here, and a busy disk would make it wait for each `fsync`
    /// until those who ask it have given up.
    pub(crate) fn redis() -> Server {
        let kept = ["--appendonly", "yes", "--appendfsync", "no", "--save", "", "--maxmemory-policy", "noeviction"];
        Server::new("redis-server", &["--bind", "127.0.0.1"], &kept, "--dir")
    }

    /// A Redis that writes nothing down but when it is told to `SAVE`: killed, it comes back as it was then.
    pub(crate) fn redis_of_snapshots() -> Server {
        let saved = ["--appendonly", "no", "--save", "", "--maxmemory-policy", "noeviction"];
        Server::new("redis-server", &["--bind", "127.0.0.1"], &saved, "--dir")
    }

    pub(crate) fn mongo() -> Server {
        if is_installed("mongod") {
            return Server::new("mongod", &["--bind_ip", "127.0.0.1"], &["--quiet"], "--dbpath");
        }
        let program = std::env::var("MONGO_BIN").unwrap_or_else(|_| "secantusd-rs".into());
        let small = ["--cache-size", "512M", "--log-file-max", "16MB", "--log-level", "ERROR"];
        Server::new(&program, &["--host", "127.0.0.1"], &small, "--storage-path")
    }

    fn new(program: &str, bind: &[&str], more: &[&str], folder_option: &str) -> Server {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let (port_text, place) = (port.to_string(), folder.path().to_string_lossy().into_owned());
        let own = ["--port", &port_text, folder_option, &place];
        let arguments = [&[program], bind, more, &own].concat().into_iter().map(str::to_owned).collect::<Vec<_>>();
        let (child, watcher) = start(&arguments, port, folder.path());
        Server { port, child, watcher, folder, arguments }
    }

    /// Where this Redis is.
    pub(crate) fn redis_url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Where this database of the MongoDB is.
    pub(crate) fn mongo_url(&self, database: &str) -> String {
        format!("mongodb://127.0.0.1:{}/{database}?directConnection=true", self.port)
    }

    pub(crate) fn link(&self) -> Redis {
        Redis::new(RedisUrl::parse(&self.redis_url()).expect("a URL"))
    }

    /// Sends this Redis one command in the inline form and waits for the answer's first line.
    pub(crate) fn say(&self, command: &str) -> String {
        ask(self.port, command).expect("it answers")
    }

    /// Stops it in its tracks: connections stay open and nobody answers.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// Sends it a signal, by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status().expect("kill");
        assert!(sent.success(), "no process to send {name} to");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it and starts it again, on the same port and folder.
    pub(crate) fn restart(&mut self) {
        self.end();
        (self.child, self.watcher) = start(&self.arguments, self.port, self.folder.path());
    }

    pub(crate) fn end(&mut self) {
        // It may have ended by itself, which the test has seen by then.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.watcher.kill();
        let _ = self.watcher.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn start(arguments: &[String], port: u16, folder: &Path) -> (Child, Child) {
    let program = &arguments[0];
    let mut command = Command::new(program);
    command.args(&arguments[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn();
    let child = child.unwrap_or_else(|error| {
        panic!("{program} cannot be started, {error}: is this `make test`, or `scripts/with-servers cargo test`?")
    });
    let script = r#"trap '' INT TERM HUP; read _; kill -9 "$0" 2>/dev/null; rm -rf "$1""#;
    let mut watch = Command::new("sh");
    watch.args(["-c", script, &child.id().to_string()]).arg(folder);
    let watcher = watch.stdin(Stdio::piped()).spawn().expect("a shell");
    let begun = Instant::now();
    // A Redis listens before it has read its log.
    let is_ready = || match &**program {
        "redis-server" => ask(port, "PING").is_ok_and(|answer| answer == "+PONG"),
        _ => TcpStream::connect(("127.0.0.1", port)).is_ok(),
    };
    while !is_ready() {
        assert!(begun.elapsed() < PATIENCE, "{program} does not answer on {port}");
        std::thread::yield_now();
    }
    (child, watcher)
}

fn ask(port: u16, command: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}
