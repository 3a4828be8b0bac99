//! The recoverable versions of a cluster, as the services have them.

use dfs_common::api::directory::{GetXattr, List};
use dfs_common::ids::RECOVERED;
use dfs_common::name::Name;

use crate::Cluster;
use crate::http;

/// One recoverable version.
#[derive(Clone, Debug)]
pub struct Recoverable {
    /// Its name.
    pub name: String,
    /// What it says of itself; null where it does not.
    pub description: serde_json::Value,
    /// Its content.
    pub content: Vec<u8>,
}

/// All of them, in order of their names.
pub fn recoverable(cluster: &Cluster) -> Vec<Recoverable> {
    let page = cluster.directory(&List { ino: RECOVERED, after: None, limit: 1000 }).expect("RECOVERED is listed");
    let servers = cluster.servers().expect("servers are listed");
    let of = |row: dfs_common::api::directory::PageEntry| {
        let attributes = &row.entry.attributes;
        let xattr = GetXattr { ino: attributes.ino, name: Name::new(b"trusted.dfs.recovered").expect("a name") };
        let description = cluster.directory(&xattr).ok().and_then(|text| serde_json::from_slice(&text.0).ok()).unwrap_or_default();
        let holder = row.entry.layout.holders.first().filter(|_| attributes.size > 0);
        let content = holder.map_or_else(Vec::new, |holder| {
            let url = &servers.iter().find(|s| s.server == *holder).expect("a holder is a server").url;
            let target = format!("/v1/file/versions/{}/{}/data", attributes.ino, attributes.version);
            http::exchange(url, &http::request("GET", &target, cluster.token(), "", b"")).expect("content is served").body
        });
        Recoverable { name: row.name.to_string(), description, content }
    };
    page.entries.into_iter().map(of).collect()
}
