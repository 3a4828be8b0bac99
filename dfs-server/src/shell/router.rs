//! Several roles behind one port.

use std::sync::Arc;

use dfs_common::wire::{Request, Response, Service};
use dfs_common::{Error, ErrorKind};
use futures_util::future::{BoxFuture, FutureExt, ready};

/// Hands each request to the role whose prefix its path has.
#[derive(Default)]
pub struct Router {
    routes: Vec<(&'static str, Arc<dyn Service>)>,
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.routes.iter().map(|r| r.0)).finish()
    }
}

impl Router {
    /// Adds a role for every path that starts with `prefix`.
    #[must_use]
    pub fn route(mut self, prefix: &'static str, service: Arc<dyn Service>) -> Self {
        self.routes.push((prefix, service));
        self
    }
}

impl Service for Router {
    fn handle(self: Arc<Self>, request: Request) -> BoxFuture<'static, Response> {
        match self.routes.iter().find(|(prefix, _)| request.path.starts_with(prefix)) {
            Some((_, service)) => service.clone().handle(request),
            None => {
                let known: Vec<_> = self.routes.iter().map(|r| r.0).collect();
                let error = Error::new(ErrorKind::NotFound, format!("no such resource; resources start with {}", known.join(", ")));
                ready(Response::error(&error)).boxed()
            }
        }
    }
}
