//! Every route on one screen.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use tokio::sync::{mpsc, oneshot};

use crate::World;
use crate::behave::{DAY_MS, number, pairs};
use crate::calls::{Ask, call};
use crate::faults::{Cut, Strike};
use crate::reply::{Reply, ReplyBody, error, json};
use crate::server::Refusal;

const INDEX: &str = include_str!("index.json");

/// Answers one request, or asks the connection's task to cut the line.
pub(crate) async fn answer(
    world: Arc<World>,
    cut: mpsc::Sender<Cut>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Infallible> {
    let at = Instant::now(); // the head has just been read: nothing may come before this line
    match route(&world, at, request).await {
        Strike::Answer(reply) => return Ok(reply.into_response()),
        // A full channel means that this connection is being cut already.
        Strike::Cut(how) => drop(cut.try_send(how)),
        Strike::Hang => {}
    }
    std::future::pending().await
}

async fn route(world: &World, at: Instant, request: Request<Incoming>) -> Strike {
    let path = request.uri().path().to_owned();
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let get = request.method() == Method::GET;
    let post = request.method() == Method::POST;
    let (name, ask) = match segments[..] {
        ["sync"] if get || post => ("sync", Ask::Sync),
        ["sync", name] if get || post => (name, Ask::Sync),
        ["async"] if post => ("async", Ask::Async),
        ["async", name] if post => (name, Ask::Async),
        ["polling"] if post => ("polling", Ask::Submit),
        ["polling", name] if post => (name, Ask::Submit),
        ["polling", name, id] if get => (name, Ask::Poll { id: id.into() }),
        // The id says its name itself, so a poll needs no other one.
        ["polling", id] if get => (id.rsplit_once('-').map_or(id, |(name, _)| name), Ask::Poll { id: id.into() }),
        ["oauth", "token"] if post => ("oauth", Ask::Token),
        ["oauth", name, "token"] if post => (name, Ask::Token),
        ["at", host, ..] if segments.len() > 2 => (host, Ask::Scripted),
        ["refuse"] if post => {
            let query = request.uri().query().map(str::to_owned);
            let reply = refuse(world, query.as_deref()).await;
            return Strike::Answer(reply.unwrap_or_else(|why| error(400, &why)));
        }
        _ => return Strike::Answer(operate(world, &segments, &request)),
    };
    if !is_name(name) {
        return Strike::Answer(error(404, "a name is 1 to 100 letters, digits, `-`, `_` and `.`"));
    }
    call(world, at, name, ask, request).await
}

/// The routes that are not the vendors' own: never journaled, never faulty.
fn operate(world: &World, segments: &[&str], request: &Request<Incoming>) -> Reply {
    let (get, delete) = (request.method() == Method::GET, request.method() == Method::DELETE);
    match *segments {
        [""] if get => json(200, INDEX),
        ["livez"] if get => json(200, r#"{"status":"ok"}"#),
        ["stats", name] if get => stats(world, name, request.uri().query()).unwrap_or_else(|why| error(400, &why)),
        ["stats", name] if delete => {
            world.known(name).inspect(|vendor| vendor.reset());
            json(200, r#"{"status":"reset"}"#)
        }
        ["count", name] if get => {
            let count = world.known(name).map_or(0, |vendor| vendor.count());
            json(200, format!(r#"{{"count":{count}}}"#))
        }
        ["refuse"] => error(405, "only POST").header("allow", "POST"),
        ["" | "livez"] | ["count", _] => error(405, "only GET").header("allow", "GET"),
        ["stats", _] => error(405, "only GET and DELETE").header("allow", "GET, DELETE"),
        ["sync"] | ["sync", _] => error(405, "only GET and POST").header("allow", "GET, POST"),
        ["async" | "polling"] | ["async", _] | ["oauth", "token"] | ["oauth", _, "token"] => {
            error(405, "only POST").header("allow", "POST")
        }
        ["polling", _] => error(405, "only GET and POST").header("allow", "GET, POST"),
        ["polling", _, _] => error(405, "only GET").header("allow", "GET"),
        _ => error(404, "there is no such route; GET / lists them"),
    }
}

/// Closes the port for a while: nobody can connect, and who is connected is cut off. The answer comes when that is so.
async fn refuse(world: &World, query: Option<&str>) -> Result<Reply, String> {
    let mut time = None;
    for (key, value) in pairs(query)? {
        match key.as_str() {
            "for_ms" => time = Some(Duration::from_millis(number(&key, &value, 1, DAY_MS)?)),
            _ => return Err(format!("there is no parameter `{key}`; there is for_ms")),
        }
    }
    let time = time.ok_or("`for_ms` says for how long, in milliseconds")?;
    let (closed, is_closed) = oneshot::channel();
    if world.refusals.try_send(Refusal { time, closed }).is_err() || is_closed.await.is_err() {
        return Ok(error(503, "the port is about to be closed already"));
    }
    Ok(json(202, r#"{"status":"refusing connections"}"#))
}

fn stats(world: &World, name: &str, query: Option<&str>) -> Result<Reply, String> {
    let (mut window, mut n) = (Duration::from_secs(1), None);
    for (key, value) in pairs(query)? {
        match key.as_str() {
            "window_ms" => window = Duration::from_millis(number(&key, &value, 1, u64::MAX / 1_000_000)?),
            "n" => n = Some(number(&key, &value, 1, u64::from(u32::MAX))? as usize),
            _ => return Err(format!("there is no parameter `{key}`; there are window_ms and n")),
        }
    }
    let stats = world.stats(name, window, n);
    Ok(json(200, serde_json::to_vec(&stats).map_err(|error| error.to_string())?))
}

fn is_name(name: &str) -> bool {
    (1..=100).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}
