//! Bad input over HTTP: every resource answers 4xx with a code and a message, quickly,
//! and nothing changes.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use dfs_common::ErrorKind;
use dfs_common::api::directory::{List, Page, Publish};
use dfs_common::api::{self, file};
use dfs_common::attributes::{Entry, FileKind};
use dfs_common::ids::{InodeId, ROOT, SessionId, Token, Version};
use dfs_tests::http::{Reply, exchange, exchange_closing, request};
use dfs_tests::{Cluster, Rng, Role, bulk};
use serde_json::{Value, json};

/// An inode that does not exist.
const NOBODY: u64 = 999_999_999_999;

/// A cluster with a small tree: two files, a directory with a file, a symlink.
fn victim() -> (Cluster, Entry) {
    let cluster = Cluster::builder().file_servers(2).copies(2).start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let entry = runtime.block_on(async {
        let client = cluster.client(Duration::from_secs(30)).await.unwrap();
        let entry = bulk::write(&client, ROOT, "f", vec![b'f'; 200_000].into()).await.unwrap();
        bulk::write(&client, ROOT, "g", "small".into()).await.unwrap();
        let dir = client.directory.call(&bulk::make(ROOT, "d", FileKind::Directory, 0o755)).await.unwrap().entry;
        bulk::write(&client, dir.attributes.ino, "h", "below".into()).await.unwrap();
        let mut link = bulk::make(ROOT, "l", FileKind::Symlink, 0o777);
        link.target = Some(dfs_common::name::Text(b"d/h".to_vec()));
        client.directory.call(&link).await.unwrap();
        client.close().await.unwrap();
        entry
    });
    (cluster, entry)
}

/// Names, attributes, layout and bytes of everything: what hostile requests must not change.
fn digest(cluster: &Cluster) -> Vec<String> {
    let servers = cluster.servers().unwrap();
    let mut out = Vec::new();
    let mut pending = vec![ROOT];
    while let Some(ino) = pending.pop() {
        let Page { entries, .. } = cluster.directory(&List { ino, after: None, limit: List::MAX_LIMIT }).unwrap();
        for row in entries {
            let (attributes, layout) = (&row.entry.attributes, &row.entry.layout);
            out.push(format!("{ino} {} {attributes:?} {layout:?}", row.name));
            if attributes.kind == FileKind::Directory {
                pending.push(attributes.ino);
            }
            for holder in &layout.holders {
                let url = &servers.iter().find(|s| s.server == *holder).unwrap().url;
                let target = format!("/v1/file/versions/{}/{}/data", attributes.ino, attributes.version);
                let reply = exchange(url, &request("GET", &target, cluster.token(), "", b"")).unwrap();
                out.push(format!("{} on {holder}: {} {}", row.name, reply.status, blake3::hash(&reply.body)));
            }
        }
    }
    out
}

/// 4xx (or 501 for what is not supported) with a known code and a sentence.
#[track_caller]
fn refused(reply: &Reply, what: &str) {
    let error = reply
        .error()
        .unwrap_or_else(|| panic!("status {} without code and message for {what}: {:?}", reply.status, String::from_utf8_lossy(&reply.body)));
    let kind = ErrorKind::from_code(&error.code).unwrap_or_else(|| panic!("unknown code {} for {what}", error.code));
    let fine = (400..500).contains(&reply.status) || kind == ErrorKind::NotSupported;
    // A method that HTTP knows and nobody uses has a status of its own.
    let status = reply.status == kind.status() || reply.status == 405;
    assert!(fine && status && !error.message.is_empty(), "status {}, {error:?} for {what}", reply.status);
    assert_ne!(reply.status, 401, "{what} had credentials");
}

/// Every JSON operation with a body that would be accepted, its required fields only, and some with more. Mutations name an
/// inode that does not exist, so that no variation of them can succeed.
fn templates(ino: u64) -> Vec<(&'static str, Value)> {
    [plain(ino), births()].concat()
}

/// A request to make a file, with `more` fields.
fn making(parent: u64, more: Value) -> Value {
    let mut make = json!({"parent": parent, "name": "n", "kind": "file", "mode": 420, "uid": 0, "gid": 0});
    make.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    make
}

/// Reservations, and files under numbers that nobody has reserved.
fn births() -> Vec<(&'static str, Value)> {
    let birth = json!({"birth": {"ino": NOBODY, "first": NOBODY, "at": 0}});
    let publish = json!({"ino": NOBODY, "session": 1, "token": 1, "base": 0, "manifest": "00".repeat(32), "size": 1, "stored": 1, "mtime": 1,
        "holders": [1], "make": making(ROOT.0, birth.clone())});
    vec![
        ("/v1/directory/make", making(NOBODY, json!({"kind": "directory", "reserve": 8}))),
        ("/v1/directory/make", making(NOBODY, birth)),
        ("/v1/directory/publish", publish),
    ]
}

fn plain(ino: u64) -> Vec<(&'static str, Value)> {
    let hash = "00".repeat(32);
    let process = json!({"host": "h", "pid": 1, "program": "p"});
    let (range_owner, span) = (json!({"session": 1, "family": "posix", "number": 1}), json!({"first": 0, "last": 9}));
    let d = |path: &'static str, body: Value| (path, body);
    vec![
        d("/v1/directory/open-session", json!({"host": "h", "pid": 1, "program": "p", "mountpoint": ""})),
        d("/v1/directory/renew-session", json!({"session": NOBODY})),
        d("/v1/directory/close-session", json!({"session": NOBODY})),
        d("/v1/directory/claim-leases", json!({"session": NOBODY})),
        d("/v1/directory/events", json!({"session": NOBODY, "after": 0, "wait_ms": 1})),
        d("/v1/directory/waits", json!({})),
        d("/v1/directory/sessions", json!({})),
        d("/v1/directory/lookup", json!({"parent": 1, "name": "f"})),
        d("/v1/directory/get-attributes", json!({"ino": ino})),
        d("/v1/directory/access", json!({"ino": ino})),
        d("/v1/directory/resolve", json!({"path": "/d/h", "follow": true})),
        d("/v1/directory/list", json!({"ino": 1, "limit": 10})),
        d("/v1/directory/read-link", json!({"ino": ino})),
        d("/v1/directory/make", json!({"parent": NOBODY, "name": "n", "kind": "file", "mode": 420, "uid": 0, "gid": 0})),
        d("/v1/directory/link", json!({"ino": ino, "parent": NOBODY, "name": "n"})),
        d("/v1/directory/remove", json!({"parent": NOBODY, "name": "f", "directory": false})),
        d("/v1/directory/rename", json!({"parent": 1, "name": "f", "new_parent": NOBODY, "new_name": "n"})),
        d("/v1/directory/set-attributes", json!({"ino": NOBODY})),
        d("/v1/directory/accessed", json!({"times": [[NOBODY, 1]]})),
        d("/v1/directory/get-xattr", json!({"ino": ino, "name": "user.x"})),
        d("/v1/directory/list-xattrs", json!({"ino": ino})),
        d("/v1/directory/set-xattr", json!({"ino": NOBODY, "name": "user.x", "value": "v"})),
        d("/v1/directory/remove-xattr", json!({"ino": NOBODY, "name": "user.x"})),
        d("/v1/directory/statfs", json!({})),
        d("/v1/directory/place", json!({"ino": NOBODY, "avoid": [1]})),
        d(
            "/v1/directory/publish",
            json!({"ino": NOBODY, "session": 1, "token": 1, "base": 0, "manifest": hash, "size": 1, "stored": 1, "mtime": 1, "holders": [1]}),
        ),
        d("/v1/directory/versions", json!({"ino": ino})),
        d("/v1/directory/fence", json!({"ino": NOBODY, "token": 1})),
        d("/v1/directory/name-history", json!({"parent": 1, "name": "f"})),
        d("/v1/directory/removals", json!({"parent": 1, "limit": 10})),
        d("/v1/directory/undelete", json!({"ino": NOBODY, "parent": 1, "name": "n"})),
        d("/v1/directory/register-server", json!({"name": "n", "store": "x", "url": "u", "capacity": "no", "used": 1})),
        d("/v1/directory/heartbeat", json!({"server": 4_000_000_000_u32, "capacity": 1, "used": 1})),
        d("/v1/directory/report-copy", json!({"server": 4_000_000_000_u32, "what": {"ino": NOBODY, "version": 1}})),
        d("/v1/directory/held-versions", json!({"server": 4_000_000_000_u32})),
        d("/v1/directory/servers", json!({})),
        d("/v1/directory/sync", json!({})),
        d("/v1/directory/status", json!({})),
        d("/v1/lock/acquire", json!({"session": 1, "ino": NOBODY, "request": 1, "owner": process, "wait_ms": 0})),
        d("/v1/lock/cancel", json!({"session": 1, "ino": NOBODY, "request": 1})),
        d("/v1/lock/release", json!({"session": 1, "ino": NOBODY, "token": 1})),
        d("/v1/lock/renew", json!({"session": 1})),
        d("/v1/lock/end", json!({"session": 1})),
        d("/v1/lock/break", json!({"ino": NOBODY})),
        d("/v1/lock/recalls", json!({"session": 1, "known": [], "wait_ms": 0})),
        d("/v1/lock/in-use", json!({"session": 1, "ino": NOBODY, "token": 1, "owner": process})),
        d("/v1/lock/take-over", json!({"session": 1, "from": NOBODY})),
        d(
            "/v1/lock/lock-range",
            json!({"ino": NOBODY, "owner": range_owner, "span": span, "mode": "shared", "request": 1, "process": process, "wait_ms": 0}),
        ),
        d("/v1/lock/cancel-range", json!({"ino": NOBODY, "owner": range_owner, "request": 1})),
        d("/v1/lock/unlock-range", json!({"ino": NOBODY, "owner": range_owner, "span": span})),
        d("/v1/lock/test-range", json!({"ino": NOBODY, "owner": range_owner, "span": span, "mode": "exclusive"})),
        d("/v1/lock/ranges", json!({})),
        d("/v1/lock/locks", json!({})),
        d("/v1/lock/status", json!({})),
        d("/v1/file/missing", json!({"session": 1, "hashes": [hash]})),
        d("/v1/file/status", json!({})),
    ]
}

fn url_of<'a>(cluster: &'a Cluster, path: &str) -> &'a str {
    match path.split('/').nth(2) {
        Some("lock") => cluster.url(Role::Lock),
        Some("file") => cluster.url(Role::File(0)),
        _ => cluster.url(Role::Directory),
    }
}

#[test]
fn users_that_are_none_are_refused() {
    let (cluster, entry) = victim();
    let before = digest(&cluster);
    let many = (1..=1025).map(|group: u32| group.to_string()).collect::<Vec<_>>().join(",");
    let lines = ["", ":", "0", "root:root", "0:-1", "-1:0", "4294967295:0", "1:2:3:4", "1:2:,", "1;2", "1:2:\u{e9}", &format!("1:2:{many}")]
        .map(|user| format!("dfs-user: {user}\r\n"));
    let twice = "dfs-user: 0:0\r\ndfs-user: 0:0\r\n".to_owned();
    for (path, body) in templates(entry.attributes.ino.0) {
        for line in lines.iter().chain([&twice]) {
            let reply = exchange(url_of(&cluster, path), &request("POST", path, cluster.token(), line, body.to_string().as_bytes())).unwrap();
            refused(&reply, &format!("{path} by {}", line.trim_end()));
        }
    }
    assert_eq!(digest(&cluster), before);
}

#[test]
fn the_templates_cover_every_resource() {
    let covered: Vec<&str> = templates(1).iter().map(|t| t.0).collect();
    for path in [api::directory::PATHS, api::lock::PATHS, api::file::PATHS].concat() {
        assert!(covered.contains(&path), "{path} has no template: it would not be fuzzed");
    }
}

/// A body that no service may accept; `None` where the template has nothing to break in that way.
fn broken(body: &Value, rng: &mut Rng) -> Option<Vec<u8>> {
    let fields: Vec<String> = body.as_object()?.keys().cloned().collect();
    let mut body = body.clone();
    let text = |v: Value| Some(v.to_string().into_bytes());
    match rng.below(9) {
        0 if !fields.is_empty() => {
            body.as_object_mut()?.remove(rng.pick(&fields));
            text(body)
        }
        1 | 2 if !fields.is_empty() => {
            let field = rng.pick(&fields).clone();
            let wrong = [json!(null), json!(-1), json!(1.5), json!({"x": {}}), json!([[]]), json!([null])];
            body[&field] = rng.pick(&wrong).clone();
            text(body)
        }
        3 => {
            body["surprise"] = json!(1);
            text(body)
        }
        4 => {
            let bad = ["", ".", "..", "a/b", "/", "a%00b", "%2F", "%", "%4", "%zz", &"x".repeat(256), &"%FF".repeat(256)].map(str::to_owned);
            let field = fields.iter().find(|f| matches!(f.as_str(), "name" | "new_name"))?;
            body[field] = json!(rng.pick(&bad));
            text(body)
        }
        5 => {
            let whole = body.to_string().into_bytes();
            let end = rng.below(whole.len() as u64) as usize;
            Some(whole[..end].to_vec())
        }
        6 => {
            let len = 1 + rng.below(300) as usize;
            Some(rng.bytes(len))
        }
        7 => Some(if rng.one_in(2) {
            "[".repeat(50_000).into_bytes()
        } else {
            format!("{}1{}", "{\"a\":".repeat(20_000), "}".repeat(20_000)).into_bytes()
        }),
        8 if !fields.is_empty() => {
            let field = rng.pick(&fields).clone();
            let number = *rng.pick(&["1e400", "99999999999999999999999999", "-99999999999999999999", "0x10", "NaN"]);
            let rest: Vec<String> = fields.iter().filter(|f| **f != field).map(|f| format!("\"{f}\":{}", body[f])).collect();
            Some(format!("{{\"{field}\":{number}{}{}}}", if rest.is_empty() { "" } else { "," }, rest.join(",")).into_bytes())
        }
        _ => None,
    }
}

#[test]
fn json_that_is_wrong_is_refused_and_changes_nothing() {
    let (cluster, entry) = victim();
    let before = digest(&cluster);
    let mut rng = Rng::announced("JSON");
    let templates = templates(entry.attributes.ino.0);
    let (start, mut count, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(15) {
        let (path, body) = rng.pick(&templates);
        let Some(bytes) = broken(body, &mut rng) else { continue };
        let shown = format!("POST {path} {}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
        let asked = Instant::now();
        let reply = exchange(url_of(&cluster, path), &request("POST", path, cluster.token(), "", &bytes)).unwrap_or_else(|e| panic!("{shown}: {e}"));
        slowest = slowest.max(asked.elapsed());
        refused(&reply, &shown);
        count += 1;
    }
    println!("{count} requests, the slowest took {slowest:?}");
    assert!(count > 500);
    assert_eq!(digest(&cluster), before);
    cluster.assert_no_panics();
}

/// Where `body` has numbers, as JSON pointers.
fn numbers(body: &Value) -> Vec<String> {
    let below = |(at, value): (String, &Value)| numbers(value).into_iter().map(move |rest| format!("/{at}{rest}"));
    match body {
        Value::Number(_) => vec![String::new()],
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).flat_map(below).collect(),
        Value::Array(values) => values.iter().enumerate().map(|(at, value)| (at.to_string(), value)).flat_map(below).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn the_largest_and_smallest_numbers_break_nothing() {
    let (cluster, entry) = victim();
    let before = digest(&cluster);
    for (path, body) in templates(entry.attributes.ino.0) {
        for field in numbers(&body) {
            let value = &body.pointer(&field).unwrap().clone();
            for number in [json!(0), json!(u32::MAX), json!(1_u64 << 63), json!(u64::MAX), json!(i64::MAX), json!(i64::MIN), json!(u64::MAX - 1)] {
                // The inode of a mutation stays one that does not exist.
                if value == &json!(NOBODY) && number == json!(1) {
                    continue;
                }
                let mut body = body.clone();
                *body.pointer_mut(&field).unwrap() = number.clone();
                let what = format!("{path} with {field} = {number}");
                let reply = exchange(url_of(&cluster, path), &request("POST", path, cluster.token(), "", body.to_string().as_bytes()));
                let reply = reply.unwrap_or_else(|e| panic!("{what}: {e}"));
                if reply.status != 200 {
                    refused(&reply, &what);
                }
            }
        }
    }
    assert_eq!(digest(&cluster), before);
    cluster.assert_no_panics();
}

#[test]
fn nothing_is_served_without_credentials() {
    let (cluster, entry) = victim();
    let before = digest(&cluster);
    let content = format!("/v1/file/versions/{}/{}/data", entry.attributes.ino, entry.attributes.version);
    let mut resources: Vec<(String, &str)> = templates(1).iter().map(|t| (t.0.to_owned(), "POST")).collect();
    resources.extend([(content, "GET"), ("/v1/file/commit".into(), "POST"), (format!("/v1/file/blocks/{}", "0".repeat(64)), "PUT")]);
    resources.extend([("/".into(), "GET"), ("/metrics".into(), "GET"), ("/v1/nothing".into(), "POST")]);
    let wrong = [
        String::new(),
        "authorization: Bearer \r\n".into(),
        format!("authorization: Bearer {}x\r\n", cluster.token()),
        format!("authorization: Bearer {}\r\n", &cluster.token()[..cluster.token().len() - 1]),
        format!("authorization: Basic {}\r\n", cluster.token()),
        format!("authorization: {}\r\n", cluster.token()),
        format!("x-authorization: Bearer {}\r\n", cluster.token()),
    ];
    for (path, method) in &resources {
        for header in &wrong {
            let bytes = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{header}content-length: 2\r\n\r\n{{}}");
            let reply = exchange(url_of(&cluster, path), bytes.as_bytes()).unwrap_or_else(|e| panic!("{method} {path} {header}: {e}"));
            assert_eq!(reply.status, 401, "{method} {path} with {header:?}");
            let body: Value = serde_json::from_slice(&reply.body).expect("a JSON body");
            assert_eq!(body["code"], "unauthenticated");
            assert_eq!(body.as_object().unwrap().len(), 2, "nothing else is said: {body}");
        }
    }
    assert_eq!(digest(&cluster), before);
}

#[test]
fn unknown_paths_and_methods_are_refused() {
    let (cluster, _) = victim();
    let mut rng = Rng::announced("paths");
    let known: Vec<&str> = templates(1).iter().map(|t| t.0).collect();
    let urls = [Role::Directory, Role::Lock, Role::File(0)].map(|r| cluster.url(r).to_owned());
    for _ in 0..600 {
        let noise: String = (0..rng.below(40)).map(|_| *rng.pick(&['a', '/', '.', '%', '2', 'F', '0', '-', '~', '?', '&', '='])).collect();
        let path = match rng.below(4) {
            0 => format!("/{noise}"),
            1 => format!("{}/{noise}x", rng.pick(&known)),
            2 => format!("/v1/file/blocks/{noise}x"),
            _ => format!("/v1/file/versions/{noise}x"),
        };
        let method = *rng.pick(&["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"]);
        for url in &urls {
            let reply = exchange(url, &request(method, &path, cluster.token(), "", b"{}")).unwrap_or_else(|e| panic!("{method} {path}: {e}"));
            refused(&reply, &format!("{method} {path}"));
        }
    }
    for path in known {
        for method in ["GET", "PUT", "DELETE", "PATCH"] {
            let reply = exchange(url_of(&cluster, path), &request(method, path, cluster.token(), "", b"{}")).unwrap();
            refused(&reply, &format!("{method} {path}"));
        }
    }
    cluster.assert_no_panics();
}

#[test]
fn file_resources_check_hashes_ranges_and_metadata() {
    let (cluster, entry) = victim();
    let before = digest(&cluster);
    let servers = cluster.servers().unwrap();
    let url = &servers.iter().find(|s| s.server == entry.layout.holders[0]).unwrap().url;
    let send = |method: &str, target: &str, headers: &str, body: &[u8]| {
        exchange(url, &request(method, target, cluster.token(), headers, body)).unwrap_or_else(|e| panic!("{method} {target} {headers}: {e}"))
    };
    let (ino, version) = (entry.attributes.ino, entry.attributes.version);
    let data = format!("/v1/file/versions/{ino}/{version}/data");
    assert_eq!(send("GET", &data, "range: bytes=10-19\r\n", b"").body, b"ffffffffff");
    for range in [
        "bytes=5-1",
        "bytes=a-b",
        "bytes=-",
        "bytes=0-1,3-4",
        "lines=0-1",
        "bytes",
        "bytes=200000-200001",
        "bytes=0-99999999999999999999",
        "bytes=18446744073709551615-18446744073709551615",
    ] {
        refused(&send("GET", &data, &format!("range: {range}\r\n"), b""), range);
    }
    let manifest = data.replace("/data", "/manifest");
    for start in ["", "0", "2", "1,2", "a", "-1"] {
        refused(&send("GET", &format!("{manifest}?start={start}"), "", b""), start);
        refused(&send("GET", &format!("{data}?unchecked={start}"), "", b""), start);
    }
    let stored = send("GET", &manifest, "", b"").body;
    let begun = send("GET", &format!("{manifest}?start=1"), "", b"").body;
    assert!(begun.starts_with(&stored) && begun[stored.len()..].iter().all(|&byte| byte == b'f') && begun.len() > stored.len());
    let max = u64::MAX;
    for path in ["x/1", "1/x", "-1/1", "0/0", &format!("{max}/{max}"), &format!("{ino}/{max}"), "99999999999999999999/1", &format!("{ino}/0")] {
        for what in ["data", "manifest", "nothing", ""] {
            refused(&send("GET", &format!("/v1/file/versions/{path}/{what}"), "", b""), &format!("{path}/{what}"));
        }
    }
    let block = blake3::hash(b"block").to_hex().to_string();
    for hash in [&"0".repeat(63), &"0".repeat(65), &"g".repeat(64), "..%2f..%2fetc%2fpasswd", "../../etc/passwd", &block[..10]] {
        refused(&send("GET", &format!("/v1/file/blocks/{hash}"), "", b""), hash);
        refused(&send("PUT", &format!("/v1/file/blocks/{hash}"), "", b"block"), hash);
        refused(&send("POST", &format!("/v1/file/blocks/{hash}"), "", &[0; 50]), hash);
    }
    let patch = |len: u32, offset: u32, bytes: &[u8]| [&[0; 32][..], &len.to_le_bytes(), &offset.to_le_bytes(), bytes].concat();
    for body in [patch(5, 0, b"other"), patch(0, 0, b""), patch(5, 5, b"x"), patch(5, u32::MAX, b"x"), patch(u32::MAX, 0, b""), b"short".to_vec()] {
        refused(&send("POST", &format!("/v1/file/blocks/{block}"), "", &body), "a patch that does not make the block");
    }
    refused(&send("PUT", &format!("/v1/file/blocks/{block}"), "", b"other content"), "content of another hash");
    refused(&send("PUT", &format!("/v1/file/blocks/{block}"), "", &vec![0; (1 << 20) + 1]), "a block that is too large");
    refused(&send("PUT", &format!("/v1/file/blocks/{block}?replicas=x"), "", b"block"), "replicas that are no numbers");
    for path in [file::COMMIT, file::REPLICATE] {
        for meta in
            ["", "dfs-meta: x\r\n", "dfs-meta: {}\r\n", "dfs-meta: [1]\r\n", "dfs-session: x\r\n", "dfs-replay: 1\r\n", "dfs-meta: {\"ino\":1}\r\n"]
        {
            refused(&send("POST", path, meta, b"body"), &format!("{path} {meta}"));
        }
    }
    assert_eq!(digest(&cluster), before);
    cluster.assert_no_panics();
}

#[test]
fn commits_that_do_not_fit_are_refused() {
    let (cluster, entry) = victim();
    let before = digest(&cluster);
    let servers = cluster.servers().unwrap();
    let url = &servers.iter().find(|s| s.server == entry.layout.holders[0]).unwrap().url;
    let (ino, version) = (entry.attributes.ino, entry.attributes.version);
    let content = b"new content";
    let manifest = dfs_common::block::Manifest::new(16, content.len() as u64, vec![(0, dfs_common::block::BlockHash::of(content))]).unwrap().encode();
    let good = json!({"ino": ino, "session": 1, "token": 1_000_000, "base": version, "mtime": 1, "manifest_len": manifest.len(),
        "inline": [content.len()], "replicas": [], "durable": false});
    let body = [&manifest[..], content].concat();
    let with = |field: &str, value: Value| {
        let mut meta = good.clone();
        meta[field] = value;
        (format!("{field} = {}", meta[field]), meta)
    };
    let make = |more: Value| making(ROOT.0, more);
    let cases = [
        with("base", json!(version.0 + 5)),
        with("base", json!(u64::MAX)),
        with("token", json!(0)),
        with("ino", json!(NOBODY)),
        with("ino", json!(ROOT)),
        with("manifest_len", json!(0)),
        with("manifest_len", json!(manifest.len() - 1)),
        with("manifest_len", json!(u32::MAX)),
        with("inline", json!([])),
        with("inline", json!([content.len() + 1])),
        with("inline", json!([u32::MAX, u32::MAX, u32::MAX])),
        with("inline", json!([content.len() - 1, 1])),
        with("patches", json!([1])),
        with("patches", json!([u32::MAX, u32::MAX, u32::MAX])),
        with("patches", json!([-1])),
        with("manifest_base", json!("0".repeat(64))),
        with("manifest_base", json!(blake3::hash(&manifest).to_hex().to_string())),
        with("manifest_base", json!("x")),
        with("session", json!(NOBODY)),
        with("make", json!({})),
        with("make", make(json!({}))),
        with("make", make(json!({"reserve": 1}))),
        with("make", make(json!({"birth": {"ino": NOBODY, "first": ino, "at": 0}}))),
        with("make", make(json!({"reserve": 1, "birth": {"ino": ino, "first": ino, "at": 0}}))),
        with("make", make(json!({"birth": {"ino": ino, "first": ino}}))),
    ];
    for (what, meta) in cases {
        let headers = format!("dfs-meta: {meta}\r\n");
        let reply = exchange(url, &request("POST", file::COMMIT, cluster.token(), &headers, &body)).unwrap_or_else(|e| panic!("{what}: {e}"));
        refused(&reply, &what);
    }
    let publish = Publish {
        ino: InodeId(ino.0),
        session: SessionId(1),
        token: Token(1_000_000),
        base: Version(version.0 + 1),
        manifest: entry.layout.manifest.unwrap(),
        size: 1,
        stored: 1,
        mtime: entry.attributes.mtime,
        holders: entry.layout.holders.clone(),
        missing: vec![],
        durable: false,
        interim: false,
        goes_on: false,
        set: None,
        make: None,
    };
    assert_eq!(cluster.directory(&publish).unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(digest(&cluster), before);
    cluster.assert_no_panics();
}

#[test]
fn bytes_that_are_no_http_end_the_connection_and_nothing_else() {
    let (cluster, _) = victim();
    let before = digest(&cluster);
    let mut rng = Rng::announced("bytes");
    let token = cluster.token();
    let head = |rest: &str| format!("POST /v1/directory/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{rest}").into_bytes();
    let mut cases: Vec<Vec<u8>> = vec![
        b"\r\n\r\n\r\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /\r\n\r\n".to_vec(),
        [&b"GET /"[..], &vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat(),
        head(&format!("x: {}\r\n\r\n", "y".repeat(1 << 20))),
        head(&"a: b\r\n".repeat(5000)),
        head("content-length: -1\r\n\r\n{}"),
        head("content-length: 99999999999999999999999\r\n\r\n{}"),
        head("content-length: 9223372036854775807\r\n\r\n{}"),
        head("content-length: 2\r\ncontent-length: 3\r\n\r\n{}x"),
        head("transfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
        head("transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
    ];
    cases.extend((0..200).map(|_| {
        let len = 1 + rng.below(2000) as usize;
        let mut bytes = rng.bytes(len);
        bytes.extend_from_slice(b"\r\n\r\n");
        bytes
    }));
    for role in [Role::Directory, Role::Lock, Role::File(0)] {
        for bytes in &cases {
            match exchange_closing(cluster.url(role), bytes) {
                Ok(reply) => assert!(
                    (400..500).contains(&reply.status),
                    "status {} for {:?}",
                    reply.status,
                    String::from_utf8_lossy(&bytes[..bytes.len().min(80)])
                ),
                Err(e) => assert_eq!(e.kind(), ErrorKind::Unavailable, "{e} for {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)])),
            }
        }
        // Connections that end in the middle of everything.
        for cut in [1, 20, 60, 120] {
            let whole = request("POST", "/v1/directory/status", token, "", &[b'x'; 100]);
            TcpStream::connect(cluster.url(role).trim_start_matches("http://")).unwrap().write_all(&whole[..cut]).unwrap();
        }
    }
    assert_eq!(digest(&cluster), before);
    cluster.assert_no_panics();
}

#[test]
fn idle_and_slow_connections_do_not_keep_others_out() {
    let (cluster, _) = victim();
    let address = cluster.url(Role::Directory).trim_start_matches("http://").to_owned();
    let idle: Vec<TcpStream> = (0..200)
        .map(|n| {
            let mut stream = TcpStream::connect(&address).unwrap();
            if n % 2 == 0 {
                stream.write_all(b"POST /v1/directory/status HTTP/1.1\r\nhost: x\r\n").unwrap();
            }
            stream
        })
        .collect();
    let start = Instant::now();
    for _ in 0..50 {
        cluster.directory(&api::directory::Status {}).unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(idle);
}
