//! Access control lists: mode and list say the same, and directories hand theirs down.

use super::*;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

/// A list from (tag, permissions, id).
fn list(rows: &[(u16, u16, u32)]) -> Vec<u8> {
    let rows = rows.iter().flat_map(|(tag, permissions, id)| [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat());
    2u32.to_le_bytes().into_iter().chain(rows).collect()
}

/// Owner, user 1000, group, mask, others.
fn five(owner: u16, user: u16, group: u16, mask: u16, others: u16) -> Vec<u8> {
    list(&[(1, owner, u32::MAX), (2, user, 1000), (4, group, u32::MAX), (16, mask, u32::MAX), (32, others, u32::MAX)])
}

fn three(owner: u16, group: u16, others: u16) -> Vec<u8> {
    list(&[(1, owner, u32::MAX), (4, group, u32::MAX), (32, others, u32::MAX)])
}

async fn set(client: &Client, ino: InodeId, text: &str, value: Vec<u8>) -> Result<()> {
    client.call(&SetXattr { ino, name: name(text), value: Text(value), mode: XattrMode::Set }).await.map(|_| ())
}

async fn get(client: &Client, ino: InodeId, text: &str) -> Option<Vec<u8>> {
    match client.call(&GetXattr { ino, name: name(text) }).await {
        Ok(value) => Some(value.0),
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::NoAttribute);
            None
        }
    }
}

async fn make(client: &Client, parent: InodeId, text: &str, kind: FileKind, mode: u32, umask: u32) -> Attributes {
    let target = (kind == FileKind::Symlink).then(|| Text(b"t".to_vec()));
    client.call(&Make { umask, uid: 1, gid: 2, target, ..Make::new(parent, name(text), kind, mode) }).await.unwrap().entry.attributes
}

#[tokio::test]
async fn the_umask_holds_where_no_default_list_does() {
    let client = Client::new();
    for (n, kind) in [FileKind::File, FileKind::Directory, FileKind::Fifo].into_iter().enumerate() {
        assert_eq!(make(&client, ROOT, &n.to_string(), kind, 0o1666, 0o7027).await.mode, 0o1640);
    }
    assert_eq!(make(&client, ROOT, "l", FileKind::Symlink, 0o777, 0o777).await.mode, 0o777);
}

#[tokio::test]
async fn list_and_mode_follow_each_other() {
    let client = Client::new();
    let ino = client.file(ROOT, "f").await;
    client.call(&SetAttributes { mode: Some(0o4600), ..SetAttributes::none(ino) }).await.unwrap();
    set(&client, ino, ACCESS, five(7, 6, 4, 5, 1)).await.unwrap();
    let attributes = client.attributes(ino).await.unwrap().attributes;
    assert_eq!((attributes.mode, attributes.has_xattrs), (0o4751, true));
    client.call(&SetAttributes { mode: Some(0o620), ..SetAttributes::none(ino) }).await.unwrap();
    assert_eq!(get(&client, ino, ACCESS).await, Some(five(6, 6, 4, 2, 0)));
    set(&client, ino, ACCESS, three(7, 1, 0)).await.unwrap();
    let attributes = client.attributes(ino).await.unwrap().attributes;
    assert_eq!((attributes.mode, attributes.has_xattrs), (0o710, false), "the mode says it all");
    set(&client, ino, ACCESS, five(7, 6, 4, 5, 1)).await.unwrap();
    client.call(&RemoveXattr { ino, name: name(ACCESS) }).await.unwrap();
    let attributes = client.attributes(ino).await.unwrap().attributes;
    assert_eq!((attributes.mode, attributes.has_xattrs), (0o751, false), "the mode stays");
}

#[tokio::test]
async fn a_default_list_is_handed_down() {
    let client = Client::new();
    let dir = client.dir(ROOT, "d").await;
    let default = five(7, 7, 5, 7, 5);
    set(&client, dir, DEFAULT, default.clone()).await.unwrap();
    assert_eq!(client.attributes(dir).await.unwrap().attributes.mode, 0o755, "it guards nothing itself");
    let file = make(&client, dir, "f", FileKind::File, 0o664, 0o077).await;
    assert_eq!((file.mode, file.has_xattrs), (0o664, true), "the umask does not count");
    assert_eq!(get(&client, file.ino, ACCESS).await, Some(five(6, 7, 5, 6, 4)));
    assert_eq!(get(&client, file.ino, DEFAULT).await, None);
    let sub = make(&client, dir, "s", FileKind::Directory, 0o750, 0o077).await;
    assert_eq!((get(&client, sub.ino, ACCESS).await, get(&client, sub.ino, DEFAULT).await), (Some(five(7, 7, 5, 5, 0)), Some(default)));
    let link = make(&client, dir, "l", FileKind::Symlink, 0o777, 0).await;
    assert!(!link.has_xattrs && link.mode == 0o777);

    set(&client, dir, DEFAULT, three(6, 4, 0)).await.unwrap();
    let file = make(&client, dir, "g", FileKind::File, 0o666, 0o777).await;
    assert_eq!((file.mode, file.has_xattrs), (0o640, false));
    set(&client, dir, DEFAULT, 2u32.to_le_bytes().to_vec()).await.unwrap();
    assert_eq!(get(&client, dir, DEFAULT).await, None, "an empty list is none");
    assert_eq!(make(&client, dir, "h", FileKind::File, 0o666, 0o022).await.mode, 0o644);
    // What was counted goes with the inodes: nothing is left to delete twice.
    for text in ["f", "g", "h", "l"] {
        client.remove(dir, text, false).await.unwrap();
    }
    client.remove(dir, "s", true).await.unwrap();
    client.remove(ROOT, "d", true).await.unwrap();
    assert_eq!(client.status().await.inodes, 2);
}

#[tokio::test]
async fn lists_in_the_wrong_place_are_refused() {
    let client = Client::new();
    let (file, link) = (client.file(ROOT, "f").await, client.make(ROOT, "l", FileKind::Symlink).await.unwrap().attributes.ino);
    assert_eq!(kind(set(&client, file, DEFAULT, three(7, 7, 7)).await), ErrorKind::Forbidden);
    assert_eq!(kind(set(&client, link, ACCESS, three(7, 7, 7)).await), ErrorKind::NotSupported);
    assert_eq!(kind(set(&client, file, ACCESS, vec![2, 0, 0, 0, 1]).await), ErrorKind::Invalid);
    assert_eq!(client.attributes(file).await.unwrap().attributes.mode, 0o755);
}
