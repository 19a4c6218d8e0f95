//! The network and the checker against themselves, with no Weft in between.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::Command,
};
use weft_tests::{
    cut::{Link, Network, Way},
    history::{Done, History, Verdict},
    soon,
};

/// Writes back whatever it reads.
async fn echo() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut io, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = io.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

async fn says(io: &mut TcpStream, text: &str) -> String {
    io.write_all(text.as_bytes()).await.unwrap();
    hears(io, text.len()).await
}

async fn hears(io: &mut TcpStream, length: usize) -> String {
    let mut heard = vec![0; length];
    soon("an echo", io.read_exact(&mut heard)).await.unwrap();
    String::from_utf8(heard).unwrap()
}

#[tokio::test]
async fn a_network_swallows_delays_and_cuts() {
    let network = Network::default();
    let address = network.proxy("echo", echo().await).await;
    let mut io = TcpStream::connect(address).await.unwrap();
    assert_eq!(says(&mut io, "hello").await, "hello");

    for link in
        [Link::Open { there: Way::Swallow, back: Way::Pass }, Link::Open { there: Way::Pass, back: Way::Swallow }]
    {
        network.set(None, "echo", link);
        io.write_all(b"late").await.unwrap();
        let nothing = tokio::time::timeout(Duration::from_millis(100), io.read_u8()).await;
        assert!(nothing.is_err(), "{link:?}: {nothing:?}");
        network.heal();
        assert_eq!(hears(&mut io, 4).await, "late");
    }

    network.set(None, "echo", Link::slow(Duration::from_millis(60)));
    let start = Instant::now();
    assert_eq!(says(&mut io, "slow").await, "slow");
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());

    network.set(None, "echo", Link::Reset);
    let ended = soon("the end", io.read_u8()).await;
    assert_eq!(ended.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let mut refused = TcpStream::connect(address).await.unwrap();
    assert_eq!(soon("the end", refused.read_u8()).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    network.heal();
    let mut io = TcpStream::connect(address).await.unwrap();
    assert_eq!(says(&mut io, "again").await, "again");
    // The end of one direction is not the end of the other.
    io.write_all(b"last").await.unwrap();
    io.shutdown().await.unwrap();
    let mut rest = String::new();
    soon("the end", io.read_to_string(&mut rest)).await.unwrap();
    assert_eq!(rest, "last");
}

/// A rule for one process is not one for another.
#[tokio::test]
async fn a_network_knows_who_connects() {
    const SAYS_HELLO: &str = "read go; exec 3<>/dev/tcp/127.0.0.1/$0 && echo hello >&3 && read -t 10 line <&3 && \
                              test \"$line\" = hello";
    let network = Network::default();
    let address = network.proxy("echo", echo().await).await;
    network.set(Some("bash"), "echo", Link::Reset);
    for known in [false, true] {
        let mut child = Command::new("bash")
            .args(["-c", SAYS_HELLO, &address.port().to_string()])
            .stdin(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        if known {
            network.introduce(child.id().unwrap(), "bash");
        }
        child.stdin.take().unwrap().write_all(b"go\n").await.unwrap();
        let status = soon("bash ends", child.wait()).await.unwrap();
        assert_eq!(status.success(), !known, "{status}");
    }
}

/// What the tests rely on: a checker that finds a read of what was overwritten.
#[test]
fn the_checker_finds_a_planted_stale_read() {
    let honest = History::default();
    let stale = History::default();
    for history in [&honest, &stale] {
        for (client, value) in (0..200).map(|value| (value as u32 % 3, value)) {
            let at = i64::try_from(value).unwrap() * 100;
            history.add(client, "a", Done::Write(value), (at, at + 150));
            history.add(9, "b", Done::Write(value), (at, at + 50));
            history.add(8, "b", Done::Read(Some(value)), (at + 40, at + 60));
        }
        history.add(7, "a", Done::Read(Some(199)), (30_000, 30_010));
    }
    assert_eq!(honest.verdict(), Verdict::Ok);
    // The write of 150 had ended, and so had that of 151 begun after it, when this read began.
    stale.add(7, "a", Done::Read(Some(150)), (15_400, 15_410));
    assert_eq!(stale.verdict(), Verdict::Illegal);
    // Also nothing at all where something was.
    honest.add(7, "b", Done::Read(None), (500, 510));
    assert_eq!(honest.verdict(), Verdict::Illegal);
}
