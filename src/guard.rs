//! Where ends may be announced: public https, and what the config allows besides. Looked at when a job is submitted, and again at the
//! address that is connected to.
//!
//! Never resolves a name by itself, and never trusts how an address is written: it looks at the address.

use std::{
    net::{IpAddr, SocketAddr},
    sync::LazyLock,
};

use ipnet::IpNet;
use url::{Host, Url};

use crate::vendor::http::Origin;

/// The port of https, and those that every program may open.
const PORTS: [std::ops::RangeInclusive<u16>; 2] = [443..=443, 1024..=65_535];

/// No name in the DNS is longer, without the dot at its end (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 253;

/// Blocks that are for no public host, of IPv4 and inside of [`GLOBAL_V6`]. From the IANA registries of special-purpose addresses (RFC 6890).
const SPECIAL: [&str; 21] = [
    "0.0.0.0/8",         // this network (RFC 791, 3.2)
    "10.0.0.0/8",        // private (RFC 1918)
    "100.64.0.0/10",     // shared: carrier-grade NAT (RFC 6598)
    "127.0.0.0/8",       // loopback (RFC 1122, 3.2.1.3)
    "168.63.129.16/32",  // the host of a machine at Azure, which answers for the platform
    "169.254.0.0/16",    // link-local, metadata of clouds (RFC 3927)
    "172.16.0.0/12",     // private (RFC 1918)
    "192.0.0.0/24",      // IETF protocol assignments (RFC 6890, 2.1)
    "192.0.2.0/24",      // documentation (RFC 5737)
    "192.88.99.0/24",    // 6to4 relays (RFC 7526)
    "192.168.0.0/16",    // private (RFC 1918)
    "198.18.0.0/15",     // benchmarks (RFC 2544)
    "198.51.100.0/24",   // documentation (RFC 5737)
    "203.0.113.0/24",    // documentation (RFC 5737)
    "224.0.0.0/4",       // multicast (RFC 5771)
    "240.0.0.0/4",       // reserved, and broadcast (RFC 1112, 4; RFC 919)
    "2001::/23",         // IETF protocol assignments: Teredo, benchmarks, ORCHID (RFC 2928)
    "2001:db8::/32",     // documentation (RFC 3849)
    "2002::/16",         // 6to4: has an IPv4 address in it (RFC 3056)
    "2620:4f:8000::/48", // AS112: answers for names of private addresses (RFC 7534)
    "3fff::/20",         // documentation (RFC 9637)
];

/// Global unicast addresses (RFC 4291, 2.4). Whatever is outside is refused: loopback, IPv4-mapped, NAT64 (RFC 6052, 8215), discard-only
/// (RFC 6666), segment routing (RFC 9602), unique local (RFC 4193), link-local, multicast.
const GLOBAL_V6: &str = "2000::/3";

/// Where ends may be announced.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Addresses that are allowed although they are not public.
    pub nets: Vec<IpNet>,
    /// Origins that are allowed whatever their scheme, port and address.
    pub origins: Vec<Origin>,
}

/// A URL that may be allowed. Only its addresses are still to be looked at.
#[derive(Debug, Clone)]
pub struct Target {
    pub url: Url,
    pub origin: Origin,
}

impl Guard {
    /// The URL, if it can ever be allowed; else what is wrong with it. Never repeats it.
    pub fn target(&self, url: &str) -> Result<Target, String> {
        let url = Url::parse(url).map_err(|_| "is not a URL; write https://host/path".to_owned())?;
        let origin = Origin::of(&url).ok_or_else(|| "is not an https URL".to_owned())?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user or a password in it; put a token into the path or the query".to_owned());
        }
        if self.origins.contains(&origin) {
            return Ok(Target { url, origin });
        }
        if !origin.tls {
            return Err("must be https: only origins in allow of [result_webhooks] may be http".to_owned());
        }
        if !PORTS.iter().any(|ports| ports.contains(&origin.port)) {
            return Err(format!("has the port {}; it must be 443, or 1024 and above", origin.port));
        }
        let address = match url.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(name)) if is_localhost(name) => Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
            Some(Host::Domain(name)) if name.trim_end_matches('.').len() > LONGEST_NAME => {
                return Err(format!("has a name of more than {LONGEST_NAME} letters, which nobody can have"));
            }
            _ => None,
        };
        match address {
            Some(address) if !self.allows(address) => {
                Err("is at an address that is not public, and that allow of [result_webhooks] does not have".to_owned())
            }
            _ => Ok(Target { url, origin }),
        }
    }

    /// Whether an origin may be connected to, given all the addresses that its name has now. One that is wrong is enough: a name that
    /// mixes them is a mistake, or an attack.
    pub fn permits(&self, origin: &Origin, addresses: &[SocketAddr]) -> bool {
        self.origins.contains(origin) || addresses.iter().all(|address| self.allows(address.ip()))
    }

    fn allows(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        is_public(address) || self.nets.iter().any(|net| net.contains(&address))
    }
}

/// RFC 6761, 6.3: these names are always of this machine.
fn is_localhost(name: &str) -> bool {
    let name = name.trim_end_matches('.');
    name == "localhost" || name.ends_with(".localhost")
}

fn is_public(address: IpAddr) -> bool {
    static NETS: LazyLock<(IpNet, Vec<IpNet>)> = LazyLock::new(|| {
        let net = |text: &str| text.parse::<IpNet>().expect("a block of our own table");
        (net(GLOBAL_V6), SPECIAL.map(net).into())
    });
    let (global_v6, special) = &*NETS;
    (address.is_ipv4() || global_v6.contains(&address)) && !special.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_address_that_is_not_public_is_refused() {
        for host in "
            127.0.0.1 127.1 2130706433 0x7f000001 0177.0.0.1 0x7f.1 017700000001 %31%32%37.0.0.1 １２７.0.0.1
            127。0。0。1 localhost LOCALHOST localhost. a.localhost 0 0.0.0.0 10.0.0.1 0xa.1 100.64.0.1
            100.127.255.254 100.100.100.200 168.63.129.16 169.254.169.254 2852039166 0xa9fea9fe 172.16.0.1
            172.31.255.255 192.0.0.192 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.7
            203.0.113.7 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 [::] [::1] [0:0:0:0:0:0:0:1]
            [::ffff:127.0.0.1] [::ffff:7f00:1] [::ffff:10.0.0.1] [::ffff:169.254.169.254] [::127.0.0.1]
            [64:ff9b::7f00:1] [64:ff9b::8.8.8.8] [64:ff9b:1::1] [100::1] [2001::1] [2001:2::1] [2001:20::1]
            [2001:db8::1] [2002:7f00:1::] [2002:a00:1::1] [2620:4f:8000::1] [3fff::1] [4000::1] [5f00::1]
            [fc00::1] [fd00:ec2::254] [fe80::1] [fec0::1] [ff02::1] 127.0.0.1. 0x7f.0.0.1. 127.0.1 0x7F.0X0.0.0x1
            0000000177.0.0.1 ①②⑦.0.0.1 ⓛⓞⓒⓐⓛⓗⓞⓢⓣ loc\u{ad}alhost %6c%6f%63alhost localhost%2e a.b.LocalHost. 0.1.2.3
            0251.0376.0251.0376 169.254.43518 169.16689662 192.168.257 172.16.1 192.0.0.8 192.0.0.170 233.252.0.1 254.1.1.1
            [::ffff:0:127.0.0.1] [::ffff:100.64.0.1] [::ffff:0.0.0.0] [0:0:0:0:0:ffff:c0a8:101] [64:ff9b::a9fe:a9fe]
            [64:ff9b:0:0:0:0:0a00:1] [64:ff9b:1:ffff:ffff:ffff:a00:1] [64:ff9b:1::169.254.169.254] [100:0:0:1::1]
            [2001:0:4136:e378:8000:63bf:3fff:fdd2] [2001:1::1] [2001:1ff::1] [2002:a9fe:a9fe::] [2002::1] [fe80::5efe:7f00:1]
            [febf::1] [fdff:ffff::1] [ff0e::1] [fe80::a9fe:a9fe] [3fff:fff::1] [1fff::1]
        "
        .split_whitespace()
        {
            let url = format!("https://{host}/hook");
            assert!(Guard::default().target(&url).is_err(), "{host}");
        }
    }

    #[test]
    fn public_hosts_and_the_ports_of_programs_are_taken() {
        for url in "
            https://hooks.example.com/a?b=c https://hooks.example.com:8443/ https://1.1.1.1/ https://172.15.0.1/
            https://172.32.0.1/ https://100.63.255.255/ https://[2606:4700::1111]/ https://[::ffff:1.1.1.1]/
            HTTPS://HOOKS.EXAMPLE/ https://hooks.example:1024/
        "
        .split_whitespace()
        {
            assert!(Guard::default().target(url).is_ok(), "{url}");
        }
        for url in "
            http://hooks.example/ ftp://hooks.example/ https://hooks.example:80/ https://hooks.example:22/
            https://hooks.example:1023/ https://hooks.example:0/ https://u:p@hooks.example/ https:// hooks
            //hooks.example/ https://[fe80::1%25eth0]/ https://1.2.3.4.5/ file:///etc/passwd https://256.1/
        "
        .split_whitespace()
        {
            assert!(Guard::default().target(url).is_err(), "{url}");
        }
    }

    #[test]
    fn nothing_in_a_url_hides_where_it_goes() {
        for url in [
            "https://hooks.example@127.0.0.1/",
            "https://hooks.example:443@127.0.0.1/",
            "https://127.0.0.1\\@hooks.example/",
            "https://127.0.0.1#@hooks.example/",
            "https://127.0.0.1?@hooks.example/",
            "https:127.0.0.1/",
            "https:/127.0.0.1/",
            "https:///127.0.0.1/",
            "https:\\\\127.0.0.1\\",
            " https://127.0.0.1/",
            "ht\ntps://127.0.\t0.1/",
            "https://127.0.0.1:8443/",
            "https://[::1]:443/",
            "https://[fe80::1%eth0]/",
            "https://[::1%2525lo]/",
            "https://[::ffff:127.0.0.1.]/",
            "https://127.0.0.1%00.hooks.example/",
            "https://127.0.0.1%2f.hooks.example/",
            "https://1.1.1.1:99999/",
            "https://hooks.example:022/",
            "https://:443/",
        ] {
            assert!(Guard::default().target(url).is_err(), "{url}");
        }
        let elsewhere = Guard::default().target("https://hooks.example#@127.0.0.1/").map(|target| target.origin.host);
        assert_eq!(elsewhere, Ok("hooks.example".to_owned()), "what is after the name is no name");
        let name = |letters: usize| format!("https://{}.example/", vec!["a"; (letters - 7) / 2].join("."));
        assert!(Guard::default().target(&name(252)).is_ok());
        assert!(Guard::default().target(&name(255)).is_err());
    }

    #[test]
    fn the_config_allows_blocks_and_origins_and_no_more() {
        let origin = |url: &str| Origin::of(&Url::parse(url).unwrap()).unwrap();
        let nets = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let guard = Guard { nets, origins: vec![origin("http://hooks.internal:80")] };
        for url in ["https://10.1.2.3/", "https://[::ffff:10.1.2.3]/", "https://[fd00::1]/", "http://hooks.internal/x"]
        {
            assert!(guard.target(url).is_ok(), "{url}");
        }
        for url in ["http://10.1.2.3/", "https://10.1.2.3:80/", "https://192.168.0.1/", "http://hooks.internal:81/"] {
            assert!(guard.target(url).is_err(), "{url}");
        }
        let at = |address: &str| vec![address.parse::<SocketAddr>().unwrap()];
        assert!(guard.permits(&origin("http://hooks.internal"), &at("127.0.0.1:80")), "an origin wherever it is");
        assert!(!guard.permits(&origin("https://hooks.internal"), &at("127.0.0.1:443")));
        let public = origin("https://hooks.example");
        assert!(guard.permits(&public, &at("1.1.1.1:443")));
        let mixed = [at("1.1.1.1:443"), at("[::ffff:127.0.0.1]:443")].concat();
        assert!(!guard.permits(&public, &mixed), "one of them is enough");
    }
}
