//! Which tokens a server accepts, and what each lets its bearers do: decided here, before
//! any role sees a request.
//!
//! Invariant: a request that leaves here names a user wherever its token squashes root, and
//! that user is not root.

use dfs_common::api::needs::{Needs, needs};
use dfs_common::credentials::ClusterToken;
use dfs_common::user::{Limits, Origin};
use dfs_common::wire::Request;
use dfs_common::{Error, ErrorKind, Result};

/// A token for clients.
#[derive(Clone, Debug)]
pub struct ClientToken {
    /// The secret.
    pub token: ClusterToken,
    /// What it does not let them do.
    pub limits: Limits,
}

/// The cluster's token, and those for clients.
#[derive(Clone, Debug)]
pub struct Credentials {
    cluster: ClusterToken,
    clients: Vec<ClientToken>,
}

impl Credentials {
    /// `Invalid` where one token stands for two things.
    pub fn new(cluster: ClusterToken, clients: Vec<ClientToken>) -> Result<Self> {
        let all: Vec<&ClusterToken> = std::iter::once(&cluster).chain(clients.iter().map(|client| &client.token)).collect();
        let is_twice = |at: usize| all[..at].iter().any(|other| other.accepts(Some(&all[at].header())));
        if (1..all.len()).any(is_twice) {
            return Err(Error::new(ErrorKind::Invalid, "two token files hold the same token: each stands for other rights"));
        }
        Ok(Self { cluster, clients })
    }

    /// The cluster's own.
    pub fn cluster(&self) -> &ClusterToken {
        &self.cluster
    }

    /// Whose token an `Authorization` header proves, in time that does not depend on which, or on where it differs.
    pub(super) fn origin(&self, authorization: Option<&str>) -> Option<Origin> {
        let mut origin = self.cluster.accepts(authorization).then_some(Origin::Cluster);
        for client in &self.clients {
            if client.token.accepts(authorization) {
                origin = Some(Origin::Client(client.limits));
            }
        }
        origin
    }
}

impl From<ClusterToken> for Credentials {
    fn from(cluster: ClusterToken) -> Self {
        Self { cluster, clients: Vec::new() }
    }
}

/// Notes where `request` comes from, takes from its user what the token does not allow, and refuses what needs more.
pub(super) fn admit(request: &mut Request, origin: Origin) -> Result<()> {
    let limits = origin.limits();
    request.origin = origin;
    if let Some(squash) = limits.squash {
        request.user = Some(squash.apply(request.user.take()));
    }
    let need = needs(request.method, &request.path);
    if need == Needs::Cluster && origin != Origin::Cluster {
        return Err(Error::new(ErrorKind::Forbidden, format!("{} is for servers: a client's token does not allow it", request.path)));
    }
    if need >= Needs::Writing && limits.read_only {
        return Err(Error::new(ErrorKind::ReadOnly, format!("the token is for reading only, and {} changes something", request.path)));
    }
    if need == Needs::Root && !request.user.as_ref().is_none_or(|user| user.is_root()) {
        return Err(Error::new(ErrorKind::NotPermitted, format!("{} is for root", request.path)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dfs_common::user::{Squash, User};
    use dfs_common::wire::Method;

    use super::*;

    const NOBODY: Squash = Squash { uid: 65_534, gid: 65_533 };

    fn token(text: &str) -> ClusterToken {
        ClusterToken::new(text).unwrap()
    }

    fn client(text: &str, limits: Limits) -> ClientToken {
        ClientToken { token: token(text), limits }
    }

    #[test]
    fn each_token_stands_for_its_own_rights() {
        let limits = Limits { read_only: true, squash: Some(NOBODY) };
        let clients = vec![client("client-0123456789", Limits::default()), client("squash-0123456789", limits)];
        let credentials = Credentials::new(token("server-0123456789"), clients).unwrap();
        let origin = |text: &str| credentials.origin(Some(&format!("Bearer {text}")));
        assert_eq!(origin("server-0123456789"), Some(Origin::Cluster));
        assert_eq!(origin("client-0123456789"), Some(Origin::Client(Limits::default())));
        assert_eq!(origin("squash-0123456789"), Some(Origin::Client(limits)));
        assert_eq!((origin("other--0123456789"), credentials.origin(None)), (None, None));
        let twice = Credentials::new(token("server-0123456789"), vec![client("server-0123456789", limits)]);
        assert_eq!(twice.unwrap_err().kind(), ErrorKind::Invalid);
    }

    /// The outcome of a POST by `uid`, and who it is by then.
    fn admitted(path: &str, uid: Option<u32>, origin: Origin) -> (Option<ErrorKind>, Option<u32>) {
        let user = uid.map(|uid| User { uid, gid: uid, groups: None });
        let mut request = Request::new(Method::Post, path).user(user);
        let refused = admit(&mut request, origin).err().map(|e| e.kind());
        assert_eq!(request.origin, origin);
        (refused, request.user.map(|user| user.uid))
    }

    #[test]
    fn a_token_bounds_what_its_bearers_do() {
        let (plain, read_only) = (Origin::Client(Limits::default()), Origin::Client(Limits { read_only: true, squash: None }));
        let squashed = Origin::Client(Limits { read_only: false, squash: Some(NOBODY) });
        let (make, publish, broken) = ("/v1/directory/make", "/v1/directory/publish", "/v1/lock/break");
        for user in [None, Some(0)] {
            assert_eq!(admitted(make, user, Origin::Cluster), (None, user));
            assert_eq!(admitted(publish, user, Origin::Cluster), (None, user));
            assert_eq!(admitted(broken, user, plain), (None, user));
            assert_eq!(admitted(make, user, squashed), (None, Some(65_534)));
            assert_eq!(admitted(broken, user, squashed), (Some(ErrorKind::NotPermitted), Some(65_534)));
        }
        assert_eq!(admitted(make, Some(7), squashed), (None, Some(7)));
        assert_eq!(admitted(broken, Some(7), Origin::Cluster).0, Some(ErrorKind::NotPermitted));
        for client in [plain, read_only, squashed] {
            assert_eq!(admitted(publish, None, client).0, Some(ErrorKind::Forbidden));
        }
        assert_eq!(
            (admitted(make, Some(7), read_only).0, admitted(broken, None, read_only).0),
            (Some(ErrorKind::ReadOnly), Some(ErrorKind::ReadOnly))
        );
        assert_eq!(admitted("/v1/directory/lookup", Some(7), read_only).0, None);
    }
}
