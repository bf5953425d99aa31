//! At which address others reach this machine.
//!
//! Containers and cluster nodes listen on all their addresses, and have several. Which one the others are told is
//! chosen here: as the person says, by NCCL's variable, or by the way to the coordinator.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail};
use tokio::net::{UdpSocket, lookup_host};
use tokio::time::{Duration, Instant, sleep};

use crate::interfaces::{Interface, interfaces};
use crate::network::launcher_variable;

/// How often a name is looked up that is not known yet, as that of a container which starts at the same time.
const LOOK_UP_INTERVAL: Duration = Duration::from_millis(500);

/// How a machine with several addresses says which one is meant.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct AdvertiseArguments {
    /// Where others reach this machine: a host, HOST:PORT behind a forwarded port, or the name of a network interface
    /// [default: the address of --listen; for 0.0.0.0 and [::] that of the interface named by NCCL_SOCKET_IFNAME, or
    /// else the one that leads to the coordinator]
    #[arg(long, value_name = "HOST|INTERFACE", env = "SIMSIAM_ADVERTISE")]
    pub(crate) advertise: Option<String>,
}

/// What others are told; without a port it is the one listened on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl AdvertiseArguments {
    /// What a worker that listens on `listen` tells the others, `None` if it is just that. The coordinator's name is
    /// looked up until `deadline`.
    pub(crate) async fn place(
        &self,
        listen: &[SocketAddr],
        coordinator: &str,
        deadline: Instant,
    ) -> Result<Option<Place>> {
        let unspecified = listen.iter().find(|address| address.ip().is_unspecified());
        if let Some(given) = &self.advertise {
            return given_place(given, listen, &interfaces().context("ask for this machine's interfaces")?)
                .await
                .map(Some);
        }
        let Some(unspecified) = unspecified else { return Ok(None) };
        if let Some(pattern) = launcher_variable("NCCL_SOCKET_IFNAME") {
            let interfaces = interfaces().context("ask for this machine's interfaces")?;
            return by_pattern(&pattern, listen, &interfaces).map(Some);
        }
        let targets = look_up(coordinator, deadline).await?;
        for target in targets.iter().filter(|target| reaches(unspecified, target)) {
            if let Ok(ip) = source_address(*target).await {
                return Ok(Some(Place { host: ip.to_string(), port: None }));
            }
        }
        bail!(
            "--listen {unspecified}: none of the coordinator's addresses ({}) can be reached from there, so the others \
             cannot be told one of this machine's; listen on [::]:0 where the network is IPv6, or give --advertise",
            list(targets.iter().map(SocketAddr::ip))
        )
    }
}

/// What the person gave: an interface, a host, or a host with a port.
async fn given_place(given: &str, listen: &[SocketAddr], interfaces: &[Interface]) -> Result<Place> {
    if interfaces.iter().any(|interface| interface.name == given) {
        return match address_of(listen, interfaces, |name| name == given) {
            Some(ip) => Ok(Place { host: ip.to_string(), port: None }),
            None => bail!(
                "--advertise {given}: this interface has no address of the kind that --listen {} uses; it has {}",
                list(listen.iter().map(SocketAddr::ip)),
                list(
                    interfaces
                        .iter()
                        .filter(|interface| interface.name == given)
                        .map(|interface| interface.ip)
                )
            ),
        };
    }
    let place = parse(given);
    // Port 9 only completes the address; nobody is called.
    if given.is_empty() || lookup_host((place.host.as_str(), 9)).await.is_err() {
        bail!(
            "--advertise {given:?}: expected a host that can be looked up, HOST:PORT, or one of this machine's network \
             interfaces ({})",
            names(interfaces)
        );
    }
    Ok(place)
}

/// `HOST`, `HOST:PORT`, an IPv6 address as it is or as `[ADDRESS]:PORT`.
fn parse(given: &str) -> Place {
    let bare = |host: &str| host.trim_start_matches('[').trim_end_matches(']').to_string();
    let is_whole = given.parse::<IpAddr>().is_ok();
    match given.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))) {
        Some((host, port)) if !is_whole => Place { host: bare(host), port: Some(port) },
        _ => Place { host: bare(given), port: None },
    }
}

/// The first interface that NCCL's variable names and that has an address.
fn by_pattern(pattern: &str, listen: &[SocketAddr], interfaces: &[Interface]) -> Result<Place> {
    match address_of(listen, interfaces, |name| is_named(pattern, name)) {
        Some(ip) => Ok(Place { host: ip.to_string(), port: None }),
        None => bail!(
            "NCCL_SOCKET_IFNAME={pattern}: no interface of this machine ({}) is meant by it and has an address of the \
             kind that --listen uses; correct it, or give --advertise",
            names(interfaces)
        ),
    }
}

/// Whether `name` is meant, by NCCL's rules: beginnings of names, whole ones after `=`, all others after `^`. Only a
/// name itself means the interface that leads back to this machine.
fn is_named(pattern: &str, name: &str) -> bool {
    let (excluded, rest) = pattern.strip_prefix('^').map_or((false, pattern), |rest| (true, rest));
    let (exact, rest) = rest.strip_prefix('=').map_or((false, rest), |rest| (true, rest));
    let listed = rest.split(',').any(|part| if exact { name == part } else { name.starts_with(part) });
    listed != excluded && (name != "lo" || (!excluded && rest.split(',').any(|part| part == "lo")))
}

/// The first address that can be reached through `listen`, of an interface that `is_meant`.
fn address_of(
    listen: &[SocketAddr],
    interfaces: &[Interface],
    is_meant: impl Fn(&str) -> bool,
) -> Option<IpAddr> {
    let reached = |ip: IpAddr| listen.iter().any(|listen| reaches(listen, &SocketAddr::new(ip, 0)));
    interfaces
        .iter()
        .find(|interface| is_meant(&interface.name) && reached(interface.ip))
        .map(|found| found.ip)
}

/// The interfaces' names, each once however many addresses it has.
fn names(interfaces: &[Interface]) -> String {
    let names: BTreeSet<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

/// Whether who listens there is reached by those who have `other`'s kind of address: `[::]` takes both.
fn reaches(listen: &SocketAddr, other: &SocketAddr) -> bool {
    listen.is_ipv6() || !other.ip().to_canonical().is_ipv6()
}

/// The address that packets to `target` would bear. Nothing is sent.
async fn source_address(target: SocketAddr) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind(if target.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" }).await?;
    socket.connect(target).await?;
    Ok(socket.local_addr()?.ip().to_canonical())
}

/// The addresses of `coordinator`, whose name may become known only now.
async fn look_up(coordinator: &str, deadline: Instant) -> Result<Vec<SocketAddr>> {
    loop {
        match lookup_host(coordinator).await {
            Ok(addresses) => return Ok(addresses.collect()),
            Err(error) if Instant::now() + LOOK_UP_INTERVAL >= deadline => {
                bail!("--join {coordinator}: {error}; start the coordinator, or correct the address")
            }
            Err(_) => sleep(LOOK_UP_INTERVAL).await,
        }
    }
}

fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_named_as_nccl_names_them() {
        for (pattern, named, unnamed) in [
            ("eth", &["eth0", "eth1"][..], &["ib0", "lo"][..]),
            ("=eth0", &["eth0"], &["eth01", "eth1", "lo"]),
            ("ib,eth1", &["ib0", "ib1", "eth1", "eth10"], &["eth0", "lo"]),
            ("^docker,veth", &["eth0", "ib0"], &["docker0", "veth3a", "lo"]),
            ("^=eth0", &["eth01", "ib0"], &["eth0", "lo"]),
            ("lo", &["lo"], &["eth0"]),
        ] {
            for (names, expected) in [(named, true), (unnamed, false)] {
                for name in names {
                    assert_eq!(is_named(pattern, name), expected, "{pattern} {name}");
                }
            }
        }
    }

    #[test]
    fn an_interface_gives_the_kind_of_address_that_is_listened_on() {
        let interface = |name: &str, ip: &str| Interface { name: name.to_string(), ip: ip.parse().unwrap() };
        let both = [
            interface("lo", "127.0.0.1"),
            interface("eth0", "192.0.2.7"),
            interface("ib0", "198.51.100.7"),
            interface("eth1", "2001:db8::7"),
        ];
        for (pattern, listen, expected) in [
            ("eth", "0.0.0.0:0", Ok("192.0.2.7")),
            ("ib0", "0.0.0.0:0", Ok("198.51.100.7")),
            ("^eth0,ib", "[::]:0", Ok("2001:db8::7")),
            ("eth1", "0.0.0.0:0", Err("(eth0, eth1, ib0, lo)")),
            ("wlan", "[::]:0", Err("NCCL_SOCKET_IFNAME=wlan")),
        ] {
            match (by_pattern(pattern, &[listen.parse().unwrap()], &both), expected) {
                (Ok(place), Ok(host)) => assert_eq!(place.host, host, "{pattern}"),
                (Err(error), Err(problem)) => assert!(error.to_string().contains(problem), "{error}"),
                (place, _) => panic!("{pattern}: {place:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn hosts_come_with_or_without_a_port() {
        for (given, host, port) in [
            ("10.0.0.2", "10.0.0.2", None),
            ("10.0.0.2:7071", "10.0.0.2", Some(7071)),
            ("node-3.cluster", "node-3.cluster", None),
            ("2001:db8::7", "2001:db8::7", None),
            ("[2001:db8::7]", "2001:db8::7", None),
            ("[2001:db8::7]:7071", "2001:db8::7", Some(7071)),
        ] {
            assert_eq!(parse(given), Place { host: host.to_string(), port }, "{given}");
        }
    }

    #[tokio::test]
    async fn an_address_is_chosen_or_a_sentence_says_why_not() {
        for (listen, advertise, coordinator, expected) in [
            ("127.0.0.1:0", None, "127.0.0.1:7070", Ok(None)),
            ("0.0.0.0:0", None, "127.0.0.1:7070", Ok(Some("127.0.0.1"))),
            ("[::]:0", None, "127.0.0.1:7070", Ok(Some("127.0.0.1"))),
            ("0.0.0.0:0", Some("lo"), "127.0.0.1:7070", Ok(Some("127.0.0.1"))),
            ("127.0.0.1:0", Some("192.0.2.7"), "127.0.0.1:7070", Ok(Some("192.0.2.7"))),
            ("0.0.0.0:0", Some("192.0.2.7"), "127.0.0.1:7070", Ok(Some("192.0.2.7"))),
            ("0.0.0.0:0", Some("no-such-interface"), "127.0.0.1:7070", Err("no-such-interface")),
            ("0.0.0.0:0", Some(""), "127.0.0.1:7070", Err("expected a host")),
            ("0.0.0.0:0", None, "[::1]:7070", Err("listen on [::]:0")),
            ("0.0.0.0:0", None, "no-such-host.invalid:7070", Err("--join no-such-host.invalid:7070")),
        ] {
            let arguments = AdvertiseArguments { advertise: advertise.map(str::to_string) };
            let deadline = Instant::now();
            let place = arguments.place(&[listen.parse().unwrap()], coordinator, deadline).await;
            match (place, expected) {
                (Ok(place), Ok(host)) => {
                    assert_eq!(place.map(|place| place.host).as_deref(), host, "{listen}");
                }
                (Err(error), Err(problem)) => assert!(error.to_string().contains(problem), "{error}"),
                (place, _) => {
                    panic!("{listen} {advertise:?} {coordinator}: {place:?}, expected {expected:?}")
                }
            }
        }
    }
}
