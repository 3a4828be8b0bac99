//! A TCP proxy that misbehaves on demand, between a client and one service: it delays,
//! swallows, cuts, resets, refuses, each direction by itself; and it counts requests and bytes.
//!
//! It knows of HTTP only where a request begins. What it once swallowed from a connection
//! it cannot mend, so such a connection stays silent until somebody closes it, which is
//! what a half-open connection is.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Rng;
use crate::process::free_port;
use crate::sys;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client.
    ToServer,
    /// To the client.
    ToClient,
}

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Pass,
    /// They pass later, by a random time between these; their order stays.
    Delay(Duration, Duration),
    /// They vanish, the end of the stream too: the other side hears nothing more.
    Swallow,
}

/// A proxy in front of one address.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    modes: Mutex<[Mode; 2]>,
    refuses: AtomicBool,
    ends: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
    requests: Mutex<BTreeMap<String, u64>>,
    bytes: [AtomicU64; 2],
    /// The request whose answer is lost next.
    loses: Mutex<Option<String>>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    /// The client gets RST, which the last descriptor sends as it is closed; so no FIN before.
    resets: AtomicBool,
    /// The next answer does not arrive: the connection ends instead.
    loses: AtomicBool,
}

/// Some bytes, or the end of the stream, and when to pass them on.
type Chunk = (Instant, Option<Vec<u8>>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// In front of `url`, which need not answer yet.
    pub fn start(url: &str) -> Self {
        // Free a moment ago is not free now, where others look for ports, too.
        let listener = (0..100).find_map(|_| TcpListener::bind(("127.0.0.1", free_port())).ok()).expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            target: url.trim_start_matches("http://").to_owned(),
            modes: Mutex::new([Mode::Pass; 2]),
            refuses: AtomicBool::new(false),
            ends: AtomicBool::new(false),
            connections: Mutex::new(Vec::new()),
            requests: Mutex::new(BTreeMap::new()),
            bytes: [AtomicU64::new(0), AtomicU64::new(0)],
            loses: Mutex::new(None),
        });
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.ends.load(Ordering::SeqCst) {
                    return;
                }
                accepting.serve(client);
            }
        });
        Self { url: format!("http://{address}"), shared }
    }

    /// What clients connect to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on, in one direction, on new connections and on those that there are.
    pub fn set(&self, direction: Direction, mode: Mode) {
        lock(&self.shared.modes)[direction as usize] = mode;
    }

    /// In both directions.
    pub fn set_both(&self, mode: Mode) {
        *lock(&self.shared.modes) = [mode; 2];
    }

    /// Whether new connections are closed at once.
    pub fn refuse(&self, refuses: bool) {
        self.shared.refuses.store(refuses, Ordering::SeqCst);
    }

    /// Ends every connection, in the middle of whatever it carries, as a server that goes away does.
    pub fn cut(&self) {
        for connection in lock(&self.shared.connections).drain(..) {
            connection.close();
        }
    }

    /// The same, but with RST.
    pub fn reset(&self) {
        for connection in lock(&self.shared.connections).drain(..) {
            sys::reset_on_close(&connection.client);
            connection.resets.store(true, Ordering::SeqCst);
            connection.close();
        }
    }

    /// The next `request` (named as in [`Proxy::requests`]) is passed on and carried out, but its connection ends as its answer comes.
    pub fn lose_answer_to(&self, request: &str) {
        *lock(&self.shared.loses) = Some(request.to_owned());
    }

    /// Whether that has happened.
    pub fn has_lost(&self) -> bool {
        lock(&self.shared.loses).is_none()
    }

    /// Requests that clients have begun, by method and path without numbers and hashes.
    pub fn requests(&self) -> BTreeMap<String, u64> {
        lock(&self.shared.requests).clone()
    }

    /// Bytes that have come in one direction, headers and all, whatever became of them.
    pub fn bytes(&self, direction: Direction) -> u64 {
        self.shared.bytes[direction as usize].load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        TcpStream::connect(self.url.trim_start_matches("http://")).ok();
        self.cut();
    }
}

impl Connection {
    fn close(&self) {
        let resets = self.resets.load(Ordering::SeqCst);
        self.client.shutdown(if resets { Shutdown::Read } else { Shutdown::Both }).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

impl Shared {
    /// Connects `client` with the target, or closes it.
    fn serve(self: &Arc<Self>, client: TcpStream) {
        if self.refuses.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(&self.target) else { return };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let connection = Arc::new(Connection { client, server, resets: AtomicBool::new(false), loses: AtomicBool::new(false) });
        lock(&self.connections).push(Arc::clone(&connection));
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (sender, receiver) = channel();
            let (shared, reading, writing) = (Arc::clone(self), Arc::clone(&connection), Arc::clone(&connection));
            std::thread::spawn(move || shared.read(&reading, direction, &sender));
            let shared = Arc::clone(self);
            std::thread::spawn(move || shared.write(&writing, direction, &receiver));
        }
    }

    fn mode(&self, direction: Direction) -> Mode {
        lock(&self.modes)[direction as usize]
    }

    fn read(&self, connection: &Connection, direction: Direction, sender: &Sender<Chunk>) {
        let mut from = if direction == Direction::ToServer { &connection.client } else { &connection.server };
        let mut rng = Rng::new(from.peer_addr().map_or(1, |a| u64::from(a.port())));
        let (mut buffer, mut last) = (vec![0; 64 << 10], Instant::now());
        loop {
            let n = from.read(&mut buffer).unwrap_or(0);
            self.bytes[direction as usize].fetch_add(n as u64, Ordering::SeqCst);
            if direction == Direction::ToServer {
                self.count(&buffer[..n], connection);
            }
            let delay = match self.mode(direction) {
                Mode::Delay(least, most) => least + (most - least).mul_f64(rng.below(1_000) as f64 / 1_000.0),
                Mode::Pass | Mode::Swallow => Duration::ZERO,
            };
            last = last.max(Instant::now() + delay);
            if sender.send((last, (n > 0).then(|| buffer[..n].to_vec()))).is_err() || n == 0 {
                return;
            }
        }
    }

    fn write(&self, connection: &Arc<Connection>, direction: Direction, receiver: &Receiver<Chunk>) {
        let mut to = if direction == Direction::ToServer { &connection.server } else { &connection.client };
        let mut silent = false;
        for (due, bytes) in receiver {
            // The delay itself is what is asked for here.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            silent |= self.mode(direction) == Mode::Swallow;
            let lost = direction == Direction::ToClient && connection.loses.load(Ordering::SeqCst);
            let fine = silent || (!lost && bytes.is_some_and(|bytes| to.write_all(&bytes).is_ok()));
            if !fine {
                break;
            }
        }
        if silent {
            // Until the proxy ends, or cuts it: the other side must find out by itself.
            return;
        }
        connection.close();
        lock(&self.connections).retain(|c| !Arc::ptr_eq(c, connection));
    }

    fn count(&self, bytes: &[u8], connection: &Connection) {
        let line = bytes.split(|&b| b == b'\r').next().unwrap_or_default();
        let Ok(line) = std::str::from_utf8(line) else { return };
        let mut words = line.split(' ');
        let (Some(method @ ("GET" | "PUT" | "POST" | "HEAD" | "DELETE")), Some(target), Some("HTTP/1.1")) =
            (words.next(), words.next(), words.next())
        else {
            return;
        };
        let path = target.split('?').next().unwrap_or_default();
        let plain: VecDeque<&str> = path.split('/').filter(|p| !p.is_empty() && p.len() < 40 && !p.bytes().all(|b| b.is_ascii_digit())).collect();
        let key = format!("{method} /{}", Vec::from(plain).join("/"));
        if lock(&self.loses).take_if(|wanted| *wanted == key).is_some() {
            connection.loses.store(true, Ordering::SeqCst);
        }
        *lock(&self.requests).entry(key).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::within;

    /// A server that sends back what it gets, and a proxy before it.
    fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let mut reader = stream.try_clone().unwrap();
                    std::io::copy(&mut reader, &mut &stream).ok();
                });
            }
        });
        Proxy::start(&url)
    }

    fn connect(proxy: &Proxy) -> TcpStream {
        let stream = TcpStream::connect(proxy.url().trim_start_matches("http://")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn ask(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
        stream.write_all(text.as_bytes())?;
        let mut buffer = vec![0; text.len()];
        stream.read_exact(&mut buffer).map(|()| String::from_utf8(buffer).unwrap())
    }

    #[test]
    fn bytes_pass_and_requests_are_counted() {
        let proxy = echo();
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, "hello").unwrap(), "hello");
        let request = "GET /v1/file/versions/17/3/data?x=1 HTTP/1.1\r\nhost: x\r\n\r\n";
        assert_eq!(ask(&mut stream, request).unwrap(), request);
        assert_eq!(proxy.requests(), BTreeMap::from([("GET /v1/file/versions/data".to_owned(), 1)]));
        let both = [Direction::ToServer, Direction::ToClient].map(|direction| proxy.bytes(direction));
        assert_eq!(both, [5 + request.len() as u64; 2]);
    }

    #[test]
    fn an_answer_gets_lost_and_the_next_arrives() {
        let proxy = echo();
        let request = "POST /change HTTP/1.1\r\n\r\n";
        proxy.lose_answer_to("POST /change");
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, "GET /other HTTP/1.1\r\n\r\n").unwrap(), "GET /other HTTP/1.1\r\n\r\n");
        assert!(!proxy.has_lost());
        assert!(ask(&mut stream, request).is_err() && proxy.has_lost());
        assert_eq!(ask(&mut connect(&proxy), request).unwrap(), request);
    }

    #[test]
    fn delays_keep_order() {
        let proxy = echo();
        let mut stream = connect(&proxy);
        proxy.set(Direction::ToClient, Mode::Delay(Duration::from_millis(50), Duration::from_millis(80)));
        let start = Instant::now();
        for text in ["one", "two", "three"] {
            assert_eq!(ask(&mut stream, text).unwrap(), text);
        }
        assert!(start.elapsed() >= Duration::from_millis(150), "{:?}", start.elapsed());
    }

    #[test]
    fn a_half_open_connection_stays_silent_and_a_new_one_works() {
        let proxy = echo();
        let mut stream = connect(&proxy);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert_eq!(ask(&mut stream, "before").unwrap(), "before");
        proxy.set(Direction::ToServer, Mode::Swallow);
        assert_eq!(ask(&mut stream, "lost").unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        proxy.set(Direction::ToServer, Mode::Pass);
        assert_eq!(ask(&mut stream, "still lost").unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(ask(&mut connect(&proxy), "anew").unwrap(), "anew");
    }

    #[test]
    fn cuts_resets_and_refusals_are_seen() {
        let proxy = echo();
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, "before").unwrap(), "before");
        proxy.cut();
        assert!(ask(&mut stream, "after").is_err());
        let mut stream = connect(&proxy);
        assert_eq!(ask(&mut stream, "again").unwrap(), "again");
        proxy.reset();
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        proxy.refuse(true);
        assert!(within(Duration::from_secs(5), || ask(&mut connect(&proxy), "x").is_err()));
        proxy.refuse(false);
        assert_eq!(ask(&mut connect(&proxy), "healed").unwrap(), "healed");
    }
}
