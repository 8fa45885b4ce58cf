//! What a process or a Redis has used so far, from the kernel and from `INFO`.
//!
//! Reads only; whoever wants a difference reads twice.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;

/// The kernel counts a process's time in these.
const TICK: Duration = Duration::from_millis(10);

/// CPU time of a process, threads that have ended included.
pub(crate) fn cpu(pid: u32) -> anyhow::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name is in brackets and may hold anything; time in user mode and in the kernel are the 14th and 15th field.
    let fields: Vec<&str> = text.rsplit_once(')').context("a name in brackets")?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
    Ok(TICK * (ticks(11) + ticks(12)))
}

/// Memory in RAM, in MiB.
pub(crate) fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    Ok(status_field(Path::new(&format!("/proc/{pid}/status")), "VmRSS:")? / 1024.0)
}

/// How often each thread of a process has gone to sleep by itself, which is how often it was woken.
pub(crate) struct WakeUps(HashMap<PathBuf, f64>);

impl WakeUps {
    pub(crate) fn read(pid: u32) -> anyhow::Result<WakeUps> {
        let mut threads = HashMap::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let path = thread?.path();
            // A thread may end between the two reads.
            let woken = status_field(&path.join("status"), "voluntary_ctxt_switches:").unwrap_or(0.0);
            threads.insert(path, woken);
        }
        Ok(WakeUps(threads))
    }

    /// Of all threads since then; without what those that have ended did meanwhile, which nobody knows.
    pub(crate) fn since(self, before: &WakeUps) -> f64 {
        self.0.iter().map(|(thread, woken)| woken - before.0.get(thread).unwrap_or(&0.0)).sum()
    }
}

fn status_field(path: &Path, name: &str) -> anyhow::Result<f64> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)).context("the kernel says it")?;
    Ok(value.split_whitespace().next().context("a number")?.parse()?)
}

/// What a Redis has done and holds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RedisUse {
    /// All commands, those inside of scripts too.
    pub(crate) commands: f64,
    pub(crate) scripts: f64,
    /// Time inside of scripts.
    pub(crate) scripts_us: f64,
    /// Every script of the limiter, and no other one, asks `INFO` once.
    pub(crate) infos: f64,
    pub(crate) memory_mib: f64,
}

impl RedisUse {
    pub(crate) fn read(port: u16) -> anyhow::Result<RedisUse> {
        let (stats, memory) = (info(port, "commandstats")?, info(port, "memory")?);
        let mut usage = RedisUse { commands: 0.0, scripts: 0.0, scripts_us: 0.0, infos: 0.0, memory_mib: 0.0 };
        for line in stats.lines().filter_map(|line| line.strip_prefix("cmdstat_")) {
            let (name, values) = line.split_once(':').context("cmdstat_NAME:VALUES")?;
            let of = |key: &str| {
                let value = values.split(',').find_map(|pair| pair.strip_prefix(key));
                value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0)
            };
            usage.commands += of("calls=");
            match name {
                "evalsha" | "eval" => {
                    usage.scripts += of("calls=");
                    usage.scripts_us += of("usec=");
                }
                "info" => usage.infos = of("calls="),
                _ => {}
            }
        }
        let used = memory.lines().find_map(|line| line.strip_prefix("used_memory:")).context("used_memory")?;
        usage.memory_mib = used.trim().parse::<f64>()? / 1048576.0;
        Ok(usage)
    }

    /// What was done since; the two `INFO`s of the reading in between are not counted.
    pub(crate) fn since(self, before: RedisUse) -> RedisUse {
        RedisUse {
            commands: self.commands - before.commands - 2.0,
            scripts: self.scripts - before.scripts,
            scripts_us: self.scripts_us - before.scripts_us,
            infos: self.infos - before.infos - 2.0,
            memory_mib: self.memory_mib - before.memory_mib,
        }
    }
}

fn info(port: u16, section: &str) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(("127.0.0.1", port))?;
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    connection.write_all(format!("INFO {section}\r\n").as_bytes())?;
    let (mut reader, mut length) = (BufReader::new(connection), String::new());
    reader.read_line(&mut length)?;
    let mut text = vec![0; length.trim().trim_start_matches('$').parse()?];
    reader.read_exact(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
