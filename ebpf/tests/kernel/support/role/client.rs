//! A process that connects.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::net::connect_unspec;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::support::now_ns;

/// A connect() or a greeting takes no longer, unless a test asks for it.
const LIMIT: Duration = Duration::from_secs(5);

/// | command | with | answer |
/// |---|---|---|
/// | `connect` | `to`; `bind`, `limit_ms`, `reset`: by closing; `silent`: does not wait for a greeting | `socket`, `local`, `peer`, `hello`, or `errno`; `millis` |
/// | `again` | `socket`, `to`: disconnects and connects elsewhere | as `connect` |
/// | `say` | `socket`, `text`, `count` | the `echo`'s length, or `errno` |
/// | `hear` | `socket` | what comes before the end, `heard`, or `errno` |
/// | `close` | `socket` | |
/// | `udp` | `to`, `text` | the `reply`, and `from` whom |
/// | `unix` | `path` | `hello`, or `errno` |
/// | `storm` | `to`: a list, `threads`, `pause_us`; `times`: each thread stops after so many | |
/// | `tally` | | connections so `far` |
/// | `calm` | | waits for threads with `times`, ends the others: [`Tally`] |
pub fn new() -> super::Acts {
    let mut sockets: HashMap<u64, Socket> = HashMap::new();
    let mut next = 0;
    let mut storm: Option<Storm> = None;
    Box::new(move |what, with| {
        let number = with["socket"].as_u64();
        let socket = || &sockets[&number.unwrap()];
        match what {
            "connect" => {
                let to: SocketAddr = with["to"].as_str().unwrap().parse().unwrap();
                let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
                if let Some(bind) = with["bind"].as_str() {
                    let bind: SocketAddr = bind.parse().unwrap();
                    socket.bind(&bind.into()).unwrap();
                }
                if with["reset"] == true {
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                }
                let mut answer = connect(&socket, to, with);
                if answer["errno"].is_null() {
                    next += 1;
                    answer["socket"] = next.into();
                    sockets.insert(next, socket);
                }
                answer
            }
            "again" => {
                connect_unspec(socket()).unwrap();
                connect(socket(), with["to"].as_str().unwrap().parse().unwrap(), with)
            }
            "say" => match say(socket(), with) {
                Ok(length) => json!({ "echo": length }),
                Err(error) => failed(&error),
            },
            "hear" => {
                let mut heard = Vec::new();
                match socket().read_to_end(&mut heard) {
                    Ok(_) => json!({ "heard": String::from_utf8_lossy(&heard) }),
                    Err(error) => failed(&error),
                }
            }
            "close" => {
                drop(sockets.remove(&number.unwrap()));
                json!({})
            }
            "udp" => udp(with).unwrap_or_else(|error| failed(&error)),
            "unix" => unix(with).unwrap_or_else(|error| failed(&error)),
            "storm" => {
                storm = Some(Storm::start(with));
                json!({})
            }
            "tally" => json!({ "far": storm.as_ref().unwrap().far.load(Ordering::Relaxed) }),
            "calm" => storm.take().unwrap().end().show(),
            other => panic!("no command {other}"),
        }
    })
}

pub fn failed(error: &io::Error) -> Value {
    // socket2 has no number for its own time-out.
    let timed_out = matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock);
    let errno = if timed_out { Some(libc::ETIMEDOUT) } else { error.raw_os_error() };
    json!({ "errno": errno.unwrap_or(-1), "error": error.to_string() })
}

fn connect(socket: &Socket, to: SocketAddr, with: &Value) -> Value {
    let limit = with["limit_ms"].as_u64().map_or(LIMIT, Duration::from_millis);
    let begun = Instant::now();
    let done = socket.connect_timeout(&to.into(), limit);
    let millis = begun.elapsed().as_millis() as u64;
    let mut answer = match done {
        Ok(()) => {
            let name = |address: io::Result<socket2::SockAddr>| address.unwrap().as_socket().unwrap().to_string();
            json!({ "local": name(socket.local_addr()), "peer": name(socket.peer_addr()) })
        }
        Err(error) => failed(&error),
    };
    answer["millis"] = millis.into();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    if answer["errno"].is_null() && with["silent"] != true {
        match greeting(socket) {
            Ok(hello) => answer["hello"] = hello.into(),
            Err(error) => answer["unheard"] = error.to_string().into(),
        }
    }
    answer
}

/// One line.
fn greeting(mut socket: impl Read) -> io::Result<String> {
    let mut line = String::new();
    let mut byte = [0];
    loop {
        match socket.read(&mut byte)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ if byte[0] == b'\n' => return Ok(line),
            _ => line.push(byte[0].into()),
        }
    }
}

fn say(mut socket: &Socket, with: &Value) -> io::Result<usize> {
    let text = with["text"].as_str().unwrap().as_bytes();
    let mut echo = vec![0; text.len()];
    let mut heard = 0;
    for _ in 0..with["count"].as_u64().unwrap_or(1) {
        socket.write_all(text)?;
        socket.read_exact(&mut echo)?;
        heard += echo.len();
    }
    Ok(heard)
}

fn udp(with: &Value) -> io::Result<Value> {
    let to: SocketAddr = with["to"].as_str().unwrap().parse().unwrap();
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(with["limit_ms"].as_u64().map_or(LIMIT, Duration::from_millis)))?;
    socket.connect(to)?;
    let peer = socket.peer_addr()?.to_string();
    socket.send(with["text"].as_str().unwrap_or("hi").as_bytes())?;
    let mut buffer = [0; 1024];
    let length = socket.recv(&mut buffer)?;
    Ok(json!({ "reply": String::from_utf8_lossy(&buffer[..length]), "peer": peer }))
}

fn unix(with: &Value) -> io::Result<Value> {
    let socket = std::os::unix::net::UnixStream::connect(with["path"].as_str().unwrap())?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(json!({ "hello": greeting(&socket)? }))
}

/// Threads that connect, listen to the greeting, and hang up, again and again.
struct Storm {
    stop: Arc<AtomicBool>,
    far: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
    /// The threads end by themselves.
    counted: bool,
}

/// What they met.
#[derive(Default)]
struct Tally {
    /// By destination, then by the name of the endpoint: connections, start of the first, start of the last.
    by_name: BTreeMap<(String, String), (u64, u64, u64)>,
    /// Destination, errno, start, end.
    failed: Vec<(String, i64, u64, u64)>,
    /// Connected, but no greeting came: destination, why, start, end.
    unheard: Vec<(String, String, u64, u64)>,
}

impl Storm {
    fn start(with: &Value) -> Self {
        let to: Vec<String> = with["to"].as_array().unwrap().iter().map(|to| to.as_str().unwrap().into()).collect();
        let (stop, far) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let pause = Duration::from_micros(with["pause_us"].as_u64().unwrap_or(0));
        let times = with["times"].as_u64();
        let threads = (0..with["threads"].as_u64().unwrap_or(2)).map(|thread| {
            let (stop, far, to) = (stop.clone(), far.clone(), to.clone());
            std::thread::spawn(move || {
                let mut tally = Tally::default();
                for round in 0..times.unwrap_or(u64::MAX) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    tally.one(&to[(thread + round) as usize % to.len()]);
                    far.fetch_add(1, Ordering::Relaxed);
                    if !pause.is_zero() {
                        std::thread::sleep(pause);
                    }
                }
                tally
            })
        });
        Self { threads: threads.collect(), stop, far, counted: times.is_some() }
    }

    fn end(self) -> Tally {
        self.stop.store(!self.counted, Ordering::Relaxed);
        let mut all = Tally::default();
        for thread in self.threads {
            all.add(thread.join().unwrap());
        }
        all
    }
}

impl Tally {
    fn one(&mut self, to: &str) {
        let address: SocketAddr = to.parse().unwrap();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        // Nothing stays behind: a storm would use up the ports.
        socket.set_linger(Some(Duration::ZERO)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let start = now_ns();
        if let Err(error) = socket.connect_timeout(&address.into(), LIMIT) {
            let errno = failed(&error)["errno"].as_i64().unwrap();
            if errno == i64::from(libc::ECONNRESET) {
                // It stood, and was reset before connect() returned: its listener ended.
                self.unheard.push((to.into(), error.to_string(), start, now_ns()));
            } else {
                self.failed.push((to.into(), errno, start, now_ns()));
            }
            return;
        }
        match greeting(&socket) {
            Ok(name) => {
                let seen = self.by_name.entry((to.into(), name)).or_insert((0, start, start));
                *seen = (seen.0 + 1, seen.1.min(start), seen.2.max(start));
            }
            Err(error) => self.unheard.push((to.into(), error.to_string(), start, now_ns())),
        }
    }

    fn add(&mut self, other: Self) {
        for (key, (count, first, last)) in other.by_name {
            let seen = self.by_name.entry(key).or_insert((0, first, last));
            *seen = (seen.0 + count, seen.1.min(first), seen.2.max(last));
        }
        self.failed.extend(other.failed);
        self.unheard.extend(other.unheard);
    }

    fn show(&self) -> Value {
        let names = self.by_name.iter().map(|((to, name), (count, first, last))| {
            json!({ "to": to, "name": name, "count": count, "first_ns": first, "last_ns": last })
        });
        let failed = self
            .failed
            .iter()
            .map(|(to, errno, start, end)| json!({ "to": to, "errno": errno, "start_ns": start, "end_ns": end }));
        let unheard = self
            .unheard
            .iter()
            .map(|(to, error, start, end)| json!({ "to": to, "error": error, "start_ns": start, "end_ns": end }));
        json!({
            "names": names.collect::<Vec<_>>(),
            "failed": failed.collect::<Vec<_>>(),
            "unheard": unheard.collect::<Vec<_>>(),
        })
    }
}
