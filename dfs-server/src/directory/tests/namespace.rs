//! Names and attributes, case by case; [`super::model`] covers their combinations.

use super::*;

#[tokio::test]
async fn a_new_entry_can_be_found_and_touches_its_directory() {
    let client = Client::new();
    let before = client.attributes(ROOT).await.unwrap().attributes;
    let entry = client.make(ROOT, "a", FileKind::Directory).await.unwrap();
    assert_eq!(client.lookup(ROOT, "a").await.unwrap(), entry);
    let after = client.attributes(ROOT).await.unwrap().attributes;
    assert_eq!((before.nlink, after.nlink, entry.attributes.nlink), (2, 3, 2));
    assert_eq!(entry.attributes.size, 4096);
    assert!(after.mtime > before.mtime && after.ctime == after.mtime);
    assert_eq!(kind(client.make(ROOT, "a", FileKind::File).await), ErrorKind::Exists);
    assert_eq!(kind(client.lookup(ROOT, "b").await), ErrorKind::NotFound);
    let file = client.file(ROOT, "f").await;
    assert_eq!(kind(client.lookup(file, "b").await), ErrorKind::NotDirectory);
    assert_eq!(kind(client.make(file, "b", FileKind::File).await), ErrorKind::NotDirectory);
}

#[tokio::test]
async fn sgid_directories_hand_down_their_group() {
    let client = Client::new();
    let dir = client.dir(ROOT, "d").await;
    client.call(&SetAttributes { mode: Some(0o2770), gid: Some(50), ..SetAttributes::none(dir) }).await.unwrap();
    let sub = client.make(dir, "sub", FileKind::Directory).await.unwrap().attributes;
    let file = client.make(dir, "f", FileKind::File).await.unwrap().attributes;
    assert_eq!((sub.gid, sub.mode), (50, 0o2755));
    assert_eq!((file.gid, file.mode), (50, 0o755));
}

#[tokio::test]
async fn symlinks_keep_their_target() {
    let client = Client::new();
    let entry = client.make(ROOT, "l", FileKind::Symlink).await.unwrap().attributes;
    assert_eq!((entry.size, entry.mode), (9, 0o777));
    assert_eq!(client.call(&ReadLink { ino: entry.ino }).await.unwrap(), Text(b"somewhere".to_vec()));
    assert_eq!(kind(client.call(&ReadLink { ino: ROOT }).await), ErrorKind::Invalid);
    let with = |target: Option<Vec<u8>>, kind| Make { target: target.map(Text), ..Make::new(ROOT, name("x"), kind, 0) };
    for (make, expected) in [
        (with(None, FileKind::Symlink), ErrorKind::Invalid),
        (with(Some(vec![]), FileKind::Symlink), ErrorKind::NotFound),
        (with(Some(vec![b'x'; 4096]), FileKind::Symlink), ErrorKind::NameTooLong),
        (with(Some(vec![b'x'; 5]), FileKind::File), ErrorKind::Invalid),
    ] {
        assert_eq!(kind(client.call(&make).await), expected);
    }
    client.call(&with(Some(vec![b'x'; 4095]), FileKind::Symlink)).await.unwrap();
}

#[tokio::test]
async fn devices_keep_their_number_and_files_have_none() {
    let client = Client::new();
    let make = |text, kind| Make { rdev: 259, ..Make::new(ROOT, name(text), kind, 0o100_644) };
    let device = client.call(&make("dev", FileKind::BlockDevice)).await.unwrap().entry.attributes;
    let fifo = client.call(&make("fifo", FileKind::Fifo)).await.unwrap().entry.attributes;
    assert_eq!((device.rdev, fifo.rdev, fifo.mode), (259, 0, 0o644));
}

#[tokio::test]
async fn link_counts() {
    let mut client = Client::new();
    client.open_session().await;
    let file = client.file(ROOT, "a").await;
    let dir = client.dir(ROOT, "d").await;
    let link = |ino, text: &str| Link { ino, parent: dir, name: name(text) };
    assert_eq!(client.call(&link(file, "b")).await.unwrap().entry.attributes.nlink, 2);
    assert_eq!(kind(client.call(&link(file, "b")).await), ErrorKind::Exists);
    assert_eq!(kind(client.call(&link(dir, "c")).await), ErrorKind::NotPermitted);
    assert_eq!(client.remove(ROOT, "a", false).await.unwrap().entry.attributes.nlink, 1);
    assert_eq!(client.remove(dir, "b", false).await.unwrap().entry.attributes.nlink, 0);
    assert_eq!(kind(client.call(&link(file, "e")).await), ErrorKind::NotFound, "an orphan gets no name");
}

#[tokio::test]
async fn removing_the_wrong_type() {
    let client = Client::new();
    let dir = client.dir(ROOT, "d").await;
    client.file(dir, "f").await;
    assert_eq!(kind(client.remove(ROOT, "d", true).await), ErrorKind::NotEmpty);
    assert_eq!(kind(client.remove(ROOT, "d", false).await), ErrorKind::IsDirectory);
    assert_eq!(kind(client.remove(dir, "f", true).await), ErrorKind::NotDirectory);
    client.remove(dir, "f", false).await.unwrap();
    client.remove(ROOT, "d", true).await.unwrap();
    assert_eq!(client.nlink(ROOT).await, 2);
    assert_eq!(client.status().await.inodes, 2);
}

#[tokio::test]
async fn nothing_is_created_in_a_removed_directory() {
    let mut client = Client::new();
    client.open_session().await;
    let dir = client.dir(ROOT, "d").await;
    client.remove(ROOT, "d", true).await.unwrap();
    assert_eq!(client.nlink(dir).await, 0);
    assert_eq!(kind(client.make(dir, "x", FileKind::File).await), ErrorKind::NotFound);
    let page = client.call(&List { ino: dir, after: None, limit: 10 }).await.unwrap();
    assert!(page.entries.is_empty() && page.end);
}

#[tokio::test]
async fn a_directory_does_not_move_into_itself() {
    let client = Client::new();
    let a = client.dir(ROOT, "a").await;
    let b = client.dir(a, "b").await;
    for mode in [RenameMode::Replace, RenameMode::NoReplace] {
        assert_eq!(kind(client.rename((ROOT, "a"), (b, "x"), mode).await), ErrorKind::Invalid);
        assert_eq!(kind(client.rename((ROOT, "a"), (a, "x"), mode).await), ErrorKind::Invalid);
    }
    assert_eq!(kind(client.rename((a, "b"), (ROOT, "a"), RenameMode::Exchange).await), ErrorKind::Invalid);
    assert_eq!(kind(client.rename((a, "b"), (ROOT, "a"), RenameMode::Replace).await), ErrorKind::NotEmpty);
}

#[tokio::test]
async fn exchange_swaps_a_directory_and_a_file_across_directories() {
    let client = Client::new();
    let (a, b) = (client.dir(ROOT, "a").await, client.dir(ROOT, "b").await);
    let (dir, file) = (client.dir(a, "x").await, client.file(b, "y").await);
    let renamed = client.rename((a, "x"), (b, "y"), RenameMode::Exchange).await.unwrap();
    assert_eq!((renamed.entry.attributes.ino, renamed.replaced.unwrap().attributes.ino), (dir, file));
    assert_eq!((client.nlink(a).await, client.nlink(b).await), (2, 3));
    assert_eq!(client.lookup(b, "y").await.unwrap().attributes.ino, dir);
    assert_eq!(client.call(&List { ino: dir, after: None, limit: 1 }).await.unwrap().parent, b);
}

#[tokio::test]
async fn pages_are_in_byte_order_and_complete() {
    let client = Client::new();
    let mut expected: Vec<String> = (0..25).map(|i| format!("n{:02}", i * 7 % 25)).collect();
    for text in &expected {
        client.file(ROOT, text).await;
    }
    expected.sort();
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = client.call(&List { ino: ROOT, after, limit: 4 }).await.unwrap();
        assert!(page.entries.len() <= 4);
        after = page.entries.last().map(|e| e.name.clone());
        seen.extend(page.entries.into_iter().map(|e| e.name.to_string()));
        if page.end {
            break;
        }
    }
    assert_eq!(seen, expected);
    for limit in [0, List::MAX_LIMIT + 1] {
        assert_eq!(kind(client.call(&List { ino: ROOT, after: None, limit }).await), ErrorKind::Invalid);
    }
}

#[tokio::test]
async fn paths_are_walked_with_dots_and_symlinks() {
    let client = Client::new();
    let a = client.dir(ROOT, "a").await;
    let b = client.dir(a, "b").await;
    let file = client.file(b, "f").await;
    for (at, text, target) in [(ROOT, "abs", "/a/b"), (a, "rel", "b/../b/./f"), (ROOT, "loop", "loop"), (b, "top", "/")] {
        let make = Make { target: Some(Text(target.as_bytes().to_vec())), ..Make::new(at, name(text), FileKind::Symlink, 0) };
        client.call(&make).await.unwrap();
    }
    let ino = async |path: &str, follow| client.resolve(path, follow).await.map(|r| (r.parent, r.entry.map(|e| e.attributes.ino)));
    for path in ["/a/b/f", "a//b/./f", "../a/b/../b/f", "abs/f", "a/rel", "a/b/top/a/b/f"] {
        assert_eq!(ino(path, true).await.unwrap(), (b, Some(file)), "{path}");
    }
    for path in ["", "/", "..", "a/..", "a/b/top"] {
        let root = client.resolve(path, true).await.unwrap();
        assert_eq!((root.parent, root.name, root.entry.unwrap().attributes.ino), (ROOT, None, ROOT), "{path}");
    }
    let up = client.resolve("a/b/..", true).await.unwrap();
    assert_eq!((up.parent, up.name, up.entry.unwrap().attributes.ino), (ROOT, Some(name("a")), a));
    assert_ne!(ino("abs", false).await.unwrap().1, Some(b));
    assert_eq!(ino("abs", true).await.unwrap(), (a, Some(b)));
    assert_eq!(ino("a/new", true).await.unwrap(), (a, None));
    assert_eq!(kind(ino("none/new", true).await), ErrorKind::NotFound);
    assert_eq!(kind(ino("a/b/f/g", true).await), ErrorKind::NotDirectory);
    assert_eq!(kind(ino("loop", true).await), ErrorKind::Invalid);
    assert_eq!(kind(ino(&"x".repeat(256), true).await), ErrorKind::NameTooLong);
    assert_eq!(kind(ino(&"/".repeat(100_000), true).await), ErrorKind::NameTooLong);
}

#[tokio::test]
async fn extended_attributes() {
    let mut client = Client::new();
    client.open_session().await;
    let ino = client.file(ROOT, "f").await;
    let set = |text: &str, value: &[u8], mode| SetXattr { ino, name: name(text), value: Text(value.to_vec()), mode };
    let get = |text: &str| GetXattr { ino, name: name(text) };
    client.call(&set("user.b", b"1", XattrMode::Set)).await.unwrap();
    client.call(&set("user.a", b"\xff\0", XattrMode::Create)).await.unwrap();
    client.call(&set("user.a", b"", XattrMode::Replace)).await.unwrap();
    assert_eq!(client.call(&get("user.a")).await.unwrap(), Text(Vec::new()));
    assert_eq!(client.call(&ListXattrs { ino }).await.unwrap(), [name("user.a"), name("user.b")]);
    assert!(client.attributes(ino).await.unwrap().attributes.has_xattrs);
    for (request, expected) in [
        (set("user.a", b"", XattrMode::Create), ErrorKind::Exists),
        (set("user.c", b"", XattrMode::Replace), ErrorKind::NoAttribute),
        (set("user.c", &[0; 65_537], XattrMode::Set), ErrorKind::TooBig),
        (set("user.", b"", XattrMode::Set), ErrorKind::Invalid),
        (set("other.c", b"", XattrMode::Set), ErrorKind::NotSupported),
        (set("system.posix_acl_access", b"", XattrMode::Set), ErrorKind::Invalid),
    ] {
        assert_eq!(kind(client.call(&request).await), expected);
    }
    for i in 0..15 {
        client.call(&set(&format!("user.{i}"), &[1; 65_536], XattrMode::Set)).await.unwrap();
    }
    assert_eq!(kind(client.call(&set("user.15", &[1; 65_536], XattrMode::Set)).await), ErrorKind::NoSpace);
    client.call(&RemoveXattr { ino, name: name("user.0") }).await.unwrap();
    client.call(&set("user.15", &[1; 65_536], XattrMode::Set)).await.unwrap();
    assert_eq!(kind(client.call(&RemoveXattr { ino, name: name("user.0") }).await), ErrorKind::NoAttribute);
    for text in client.call(&ListXattrs { ino }).await.unwrap() {
        client.call(&RemoveXattr { ino, name: text }).await.unwrap();
    }
    assert!(!client.attributes(ino).await.unwrap().attributes.has_xattrs);
}

#[tokio::test]
async fn names_of_extended_attributes_fit_into_one_list() {
    let client = Client::new();
    let ino = client.file(ROOT, "f").await;
    let set = |n: usize, value: &[u8]| SetXattr { ino, name: name(&format!("user.{n:0250}")), value: Text(value.to_vec()), mode: XattrMode::Set };
    for n in 0..256 {
        client.call(&set(n, b"")).await.unwrap();
    }
    assert_eq!(kind(client.call(&set(256, b"")).await), ErrorKind::NoSpace);
    client.call(&set(7, b"another value needs no other name")).await.unwrap();
    assert_eq!(client.call(&ListXattrs { ino }).await.unwrap().iter().map(|n| n.as_bytes().len() + 1).sum::<usize>(), 65_536);
}

#[tokio::test]
async fn a_list_that_is_not_there_may_be_taken_away() {
    let client = Client::new();
    let ino = client.file(ROOT, "f").await;
    client.call(&RemoveXattr { ino, name: name("system.posix_acl_access") }).await.unwrap();
    assert_eq!(kind(client.call(&RemoveXattr { ino, name: name("system.other") }).await), ErrorKind::NotSupported);
    assert_eq!(kind(client.call(&GetXattr { ino, name: name("other.a") }).await), ErrorKind::NotSupported);
}

#[tokio::test]
async fn a_chmod_changes_what_it_names_and_the_ctime() {
    let client = Client::new();
    let before = client.make(ROOT, "f", FileKind::File).await.unwrap().attributes;
    let change = SetAttributes { mode: Some(0o104_755), mtime: Some(Timestamp(-5)), ..SetAttributes::none(before.ino) };
    let after = client.call(&change).await.unwrap().attributes;
    assert!(after.ctime > before.ctime);
    assert_eq!((after.mode, after.mtime, after.uid, after.atime), (0o4755, Timestamp(-5), before.uid, before.atime));
}

#[tokio::test]
async fn a_listing_says_the_same_in_both_forms() {
    let mut client = Client::new();
    let session = client.open_session().await;
    let dir = client.dir(ROOT, "d").await;
    for (text, kind) in [("file", FileKind::File), ("link", FileKind::Symlink), ("sub", FileKind::Directory)] {
        client.make(dir, text, kind).await.unwrap();
    }
    client.call(&Link { ino: client.lookup(dir, "file").await.unwrap().attributes.ino, parent: dir, name: name("again") }).await.unwrap();
    let list = List { ino: dir, after: None, limit: 10 };
    let page = client.call(&list).await.unwrap();
    assert_eq!(page.entries.len(), 4);
    let ask = |list: &List, packed| {
        client.directory.clone().handle(Request::new(Method::Post, List::PATH).json(list).session(Some(session)).packed(packed))
    };
    let (packed, json) = (ask(&list, true).await, ask(&list, false).await);
    assert_eq!((packed.content_type, json.content_type), (PACKED, JSON));
    assert!(packed.body.len() * 3 < json.body.len(), "{} bytes instead of {}", packed.body.len(), json.body.len());
    assert_eq!((packed.unpack::<List>().unwrap(), json.unpack::<List>().unwrap()), (page.clone(), page));
    // Errors are JSON.
    let refused = ask(&List { limit: 0, ..list }, true).await;
    assert_eq!((refused.content_type, kind(refused.unpack::<List>())), (JSON, ErrorKind::Invalid));
}
