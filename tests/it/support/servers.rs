//! Real servers behind the second backend: `redis-server`, and `mongod` or else SecantusDB, which speaks the same wire.
//!
//! A Redis may be one node, a master with replicas and Sentinels, or a Cluster.
//!
//! Never left behind: each dies with the test, or with the process of the tests, however that ends, and its folder with it.
//! `scripts/with-servers` installs what is missing.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
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

/// What the files of a clock are called that a test sets.
const CLOCK: &str = "clock";
/// What takes longer than this never comes. A Sentinel that a busy machine has kept from running does nothing for half a minute.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long to leave the processors to what is waited for before looking again.
const PAUSE: Duration = Duration::from_millis(5);

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

    /// A Redis whose clock a test sets.
    pub(crate) fn redis_with_a_clock() -> Server {
        let preload = format!("LD_PRELOAD=./{CLOCK}.so");
        let kept = ["--appendonly", "no", "--save", "", "--maxmemory-policy", "noeviction"];
        let prepare = |folder: &Path| {
            let source = folder.join(CLOCK).with_extension("c");
            std::fs::write(&source, include_str!("clock.c")).expect("written");
            let library = source.with_extension("so");
            let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
            assert!(built.expect("a C compiler").success(), "the clock cannot be built");
        };
        Server::with_files("env", &[&preload, "redis-server", "--bind", "127.0.0.1"], &kept, "--dir", prepare)
    }

    /// From here on its clock is so many seconds ahead of the machine's, or (negative) behind.
    pub(crate) fn set_clock(&self, ahead: i64) {
        let (new, file) = (self.folder.path().join("new"), self.folder.path().join(CLOCK));
        std::fs::write(&new, ahead.to_ne_bytes()).expect("written");
        std::fs::rename(new, file).expect("in its place");
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
        Server::with_files(program, bind, more, folder_option, |_| {})
    }

    /// `prepare`: puts what has to be there first into its folder, which it runs in.
    fn with_files(
        program: &str,
        bind: &[&str],
        more: &[&str],
        folder_option: &str,
        prepare: impl FnOnce(&Path),
    ) -> Server {
        let folder = tempfile::tempdir().expect("a temporary folder");
        prepare(folder.path());
        let port = free_port();
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
        // A signal that was sent is not yet one that has arrived.
        let has_stopped = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("it runs");
            stat.rsplit(") ").next().expect("its state").starts_with('T')
        };
        until("it stops", has_stopped);
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

/// What the many-processes backend can have in the place of one Redis.
pub(crate) trait Queue {
    fn queue_url(&self) -> String;
}

impl Queue for Server {
    fn queue_url(&self) -> String {
        self.redis_url()
    }
}

/// A master with two replicas, each of which may become master, and three Sentinels that see to it.
pub(crate) struct Sentinels {
    pub(crate) nodes: Vec<Server>,
    sentinels: Vec<Server>,
}

impl Sentinels {
    const DOWN_AFTER_MS: u32 = 3000;
    const TIME_OUT: &str = "SENTINEL SET mymaster failover-timeout 6000";

    /// `needed`: so many replicas have to be there for a write. A master that is cut off stops before it is replaced.
    pub(crate) fn new(needed: u32) -> Sentinels {
        let needed = needed.to_string();
        let node = |master: Option<u16>| {
            let kept = ["--appendonly", "yes", "--appendfsync", "no", "--save", "", "--repl-diskless-sync-delay", "0"];
            let safe = ["--min-replicas-to-write", &needed, "--min-replicas-max-lag", "2"];
            let of = master.map(|port| format!("127.0.0.1 {port}"));
            let of: Vec<&str> = of.iter().flat_map(|of| ["--replicaof", of]).collect();
            Server::new("redis-server", &["--bind", "127.0.0.1"], &[&kept[..], &safe, &of].concat(), "--dir")
        };
        let master = node(None);
        let nodes = vec![node(Some(master.port)), node(Some(master.port))];
        let port = master.port;
        let nodes: Vec<Server> = std::iter::once(master).chain(nodes).collect();
        let sentinel = |_| {
            let file = |folder: &Path| std::fs::write(folder.join("sentinel.conf"), "").expect("written");
            let bind = ["sentinel.conf", "--sentinel", "--bind", "127.0.0.1"];
            let sentinel = Server::with_files("redis-server", &bind, &[], "--dir", file);
            assert_eq!(sentinel.say(&format!("SENTINEL MONITOR mymaster 127.0.0.1 {port} 2")), "+OK");
            sentinel
        };
        let sentinels: Vec<Server> = (0..3).map(sentinel).collect();
        let known = |sentinel: &Server| {
            let said = info(sentinel.port, "sentinel");
            said.contains("slaves=2,sentinels=3") && said.contains("status=ok")
        };
        until("the Sentinels find each other and the replicas", || sentinels.iter().all(known) && replicas(port) == 2);
        // Only now: a machine that is busy while they start shall not make them replace the master before the test does.
        let after = format!("SENTINEL SET mymaster down-after-milliseconds {}", Self::DOWN_AFTER_MS);
        for (sentinel, command) in sentinels.iter().flat_map(|one| [(one, &*after), (one, Self::TIME_OUT)]) {
            assert_eq!(sentinel.say(command), "+OK");
        }
        Sentinels { nodes, sentinels }
    }

    /// How many replicas follow this node.
    pub(crate) fn replicas_of(&self, node: usize) -> usize {
        replicas(self.nodes[node].port)
    }

    /// The node that all Sentinels name, by its place in `nodes`.
    pub(crate) fn master(&self) -> Option<usize> {
        let named = |sentinel: &Server| {
            let said = info(sentinel.port, "sentinel");
            self.nodes.iter().position(|node| said.contains(&format!("address=127.0.0.1:{},", node.port)))
        };
        let named: Vec<Option<usize>> = self.sentinels.iter().map(named).collect();
        named[0].filter(|_| named.iter().all(|one| *one == named[0]))
    }
}

impl Queue for Sentinels {
    fn queue_url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        format!("redis+sentinel://{}/mymaster/0", hosts.join(","))
    }
}

/// Three masters, each with a third of the slots, and no replicas.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    const SLOTS: usize = 16_384;

    pub(crate) fn new() -> Cluster {
        let kept = ["--appendonly", "yes", "--appendfsync", "no", "--save", "", "--maxmemory-policy", "noeviction"];
        let clustered = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        let node =
            |_| Server::new("redis-server", &["--bind", "127.0.0.1"], &[&kept[..], &clustered].concat(), "--dir");
        let nodes: Vec<Server> = (0..3).map(node).collect();
        for (i, node) in nodes.iter().enumerate() {
            let slots: Vec<String> =
                (Self::SLOTS * i / 3..Self::SLOTS * (i + 1) / 3).map(|slot| slot.to_string()).collect();
            assert_eq!(node.say(&format!("CLUSTER SET-CONFIG-EPOCH {}", i + 1)), "+OK");
            assert_eq!(node.say(&format!("CLUSTER ADDSLOTS {}", slots.join(" "))), "+OK");
            assert_eq!(node.say(&format!("CLUSTER MEET 127.0.0.1 {}", nodes[0].port)), "+OK");
        }
        let is_whole = |node: &Server| {
            let said = text(node.port, "CLUSTER INFO");
            said.contains("cluster_state:ok") && said.contains("cluster_size:3")
        };
        until("the nodes of the Cluster find each other", || nodes.iter().all(is_whole));
        Cluster { nodes }
    }

    /// The node that has the slot of this key, by its place in `nodes`.
    pub(crate) fn node_of(&self, key: &str) -> usize {
        let slot = self.nodes[0].say(&format!("CLUSTER KEYSLOT {key}"));
        let slot: usize = slot.trim_start_matches(':').parse().expect("a slot");
        (0..3).find(|i| slot < Self::SLOTS * (i + 1) / 3).expect("one of three")
    }
}

impl Queue for Cluster {
    fn queue_url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|one| format!("127.0.0.1:{}", one.port)).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }
}

/// One that leaves room for the port of a Cluster's bus, 10,000 above it.
fn free_port() -> u16 {
    loop {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = socket.local_addr().expect("an address").port();
        let bus = port.checked_add(10_000).and_then(|bus| TcpListener::bind(("127.0.0.1", bus)).ok());
        if bus.is_some() {
            return port;
        }
    }
}

fn start(arguments: &[String], port: u16, folder: &Path) -> (Child, Child) {
    let program = &arguments[0];
    let mut command = Command::new(program);
    command.current_dir(folder).args(&arguments[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn();
    let mut child = child.unwrap_or_else(|error| {
        panic!("{program} cannot be started, {error}: is this `make test`, or `scripts/with-servers cargo test`?")
    });
    let script = r#"trap '' INT TERM HUP; read _; kill -9 "$0" 2>/dev/null; rm -rf "$1""#;
    let mut watch = Command::new("sh");
    watch.args(["-c", script, &child.id().to_string()]).arg(folder);
    let watcher = watch.stdin(Stdio::piped()).spawn().expect("a shell");
    // Each listens before it can do anything: a Redis reads its log first.
    let is_redis = arguments.iter().any(|part| part == "redis-server");
    let is_ready = || if is_redis { ask(port, "PING").is_ok_and(|answer| answer == "+PONG") } else { greets(port) };
    until(program, || {
        let has_ended = child.try_wait().expect("a child");
        assert!(has_ended.is_none(), "{program} has ended, {has_ended:?}: somebody else may have its port, {port}");
        is_ready()
    });
    (child, watcher)
}

/// Waits until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::park_timeout(PAUSE);
    }
}

/// Whether a MongoDB answers a client's first message.
fn greets(port: u16) -> bool {
    let hello = mongodb::bson::serialize_to_vec(&mongodb::bson::doc! { "hello": 1, "$db": "admin" }).expect("BSON");
    // OP_MSG: the header, no flags, and one section, the document.
    let length = u32::try_from(21 + hello.len()).expect("short");
    let words: Vec<u8> = [length, 1, 0, 2013, 0].into_iter().flat_map(u32::to_le_bytes).collect();
    let greet = || -> std::io::Result<()> {
        let mut connection = TcpStream::connect(("127.0.0.1", port))?;
        connection.set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.write_all(&[&words[..], &[0][..], &hello[..]].concat())?;
        connection.read_exact(&mut [0; 16])
    };
    greet().is_ok()
}

fn ask(port: u16, command: &str) -> std::io::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.write_all(format!("{command}\r\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(connection).read_line(&mut answer)?;
    Ok(answer.trim().to_owned())
}

/// A section of what a Redis says of itself; nothing while it is away.
fn info(port: u16, section: &str) -> String {
    text(port, &format!("INFO {section}"))
}

fn replicas(port: u16) -> usize {
    info(port, "replication").matches("state=online").count()
}

/// An answer of several lines.
fn text(port: u16, command: &str) -> String {
    let read = || -> std::io::Result<String> {
        let mut connection = BufReader::new(TcpStream::connect(("127.0.0.1", port))?);
        connection.get_mut().set_read_timeout(Some(Duration::from_secs(1)))?;
        connection.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let mut length = String::new();
        connection.read_line(&mut length)?;
        let mut text = vec![0; length.trim().trim_start_matches('$').parse().unwrap_or(0)];
        connection.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_default()
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}
