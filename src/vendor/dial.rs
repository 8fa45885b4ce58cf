//! Connecting by TCP to a host with several addresses (Happy Eyeballs, RFC 8305): one that does not answer costs a quarter of a second.
//!
//! Never waits for ever: whoever connects sets the time-out.

use std::{future::pending, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::net::{TcpStream, lookup_host};

/// The wait before the next address is tried beside those that have not answered (RFC 8305, 5).
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// Addresses of a host that are tried.
const MOST_ADDRESSES: usize = 16;

/// A connection to the host, without Nagle's delay. Cancel-safe.
pub(super) async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    to_one_of(lookup_host((host, port)).await?).await
}

/// The same to one of these addresses of a host. Cancel-safe.
pub(crate) async fn to_one_of(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let stream = first_of(in_turn(addresses)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The families in turn, beginning with the resolver's first (RFC 8305, 4).
fn in_turn(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.peekable();
    let is_v6_first = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.partition(|address| address.is_ipv6() == is_v6_first);
    let longest = first.len().max(second.len());
    let turn = |i| first.get(i).into_iter().chain(second.get(i)).copied();
    (0..longest).flat_map(turn).take(MOST_ADDRESSES).collect()
}

/// The first connection that is made. The next address is tried when one has failed, or has not answered for a while.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut connecting = FuturesUnordered::new();
    let mut others = addresses.into_iter();
    loop {
        match others.next() {
            Some(address) => connecting.push(TcpStream::connect(address)),
            None if connecting.is_empty() => return Err(failure),
            None => {}
        }
        let has_more = others.len() > 0;
        let next = async { if has_more { tokio::time::sleep(NEXT_AFTER).await } else { pending().await } };
        tokio::select! {
            Some(connected) = connecting.next() => match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = next => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::{net::TcpSocket, task::JoinSet};

    use super::*;

    #[test]
    fn the_families_take_turns() {
        let addresses = ["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1", "2.2.2.2:1"];
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let turns: Vec<String> = in_turn(addresses.map(address).into_iter()).iter().map(ToString::to_string).collect();
        assert_eq!(turns, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1", "[::3]:1"]);
        assert_eq!(in_turn([address("1.1.1.1:1"); 40].into_iter()).len(), MOST_ADDRESSES);
    }

    #[tokio::test]
    async fn an_address_that_does_not_answer_costs_a_quarter_of_a_second() {
        // A port whose queue is full answers nobody.
        let silent = TcpSocket::new_v4().expect("a socket");
        silent.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
        let silent = silent.listen(1).expect("it listens");
        let deaf = silent.local_addr().expect("its port");
        let mut filling = JoinSet::new();
        for _ in 0..4 {
            filling.spawn(TcpStream::connect(deaf));
        }
        // Two fit; the others wait.
        for _ in 0..2 {
            filling.join_next().await.expect("one of four").expect("no panic").expect("it fits");
        }
        let good = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let good = good.local_addr().map(|address| (good, address)).expect("its port");
        let started = Instant::now();
        let stream = first_of(vec![deaf, good.1]).await.expect("the second answers");
        let took = started.elapsed();
        assert_eq!(stream.peer_addr().expect("connected"), good.1);
        assert!(took >= NEXT_AFTER && took < Duration::from_secs(2), "{took:?}");
    }

    #[tokio::test]
    async fn an_address_that_refuses_costs_nothing_and_the_last_refusal_is_reported() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let good = listener.local_addr().expect("its port");
        let gone = std::net::TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port");
        let started = Instant::now();
        assert!(first_of(vec![gone, good]).await.is_ok());
        assert!(started.elapsed() < NEXT_AFTER, "{:?}", started.elapsed());
        assert_eq!(first_of(vec![gone]).await.expect_err("nobody listens").kind(), io::ErrorKind::ConnectionRefused);
    }
}
