//! Paths, and who answers them.

use std::future::ready;

use http::Request;
use hyper::body::Incoming;
use matchit::Router;

use crate::Answering;
use crate::answer::{Answer, not_found};

/// A request.
pub(crate) struct Call {
    pub(crate) request: Request<Incoming>,
}

type Handler = Box<dyn Fn(Call) -> Answering + Send + Sync>;

/// The paths of a server. What is at none of them is not found.
#[derive(Default)]
pub(crate) struct Routes(Router<Handler>);

impl Routes {
    /// Adds a path, which may have parts such as `{name}`, or `{*rest}` at its end. Each path may be there once.
    pub(crate) fn at<A>(
        mut self,
        path: &'static str,
        handler: impl Fn(Call) -> A + Send + Sync + 'static,
    ) -> Self
    where
        A: Future<Output = Answer> + Send + 'static,
    {
        let inserted = self.0.insert(path, Box::new(move |call| Box::pin(handler(call))));
        debug_assert!(inserted.is_ok(), "{path}: {inserted:?}");
        self
    }

    /// The same for a path that is answered at once.
    pub(crate) fn now(
        self,
        path: &'static str,
        handler: impl Fn(&Call) -> Answer + Send + Sync + 'static,
    ) -> Self {
        self.at(path, move |call| ready(handler(&call)))
    }

    /// Whoever is at the request's path answers it.
    pub(crate) fn answer(&self, request: Request<Incoming>) -> Answering {
        let Ok(found) = self.0.at(request.uri().path()) else { return Box::pin(ready(not_found())) };
        (found.value)(Call { request })
    }
}
