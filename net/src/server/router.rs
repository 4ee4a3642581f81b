//! From a request's path to the service that handles it.

use proto::rpc::{Service, Shape, Status};
use std::rc::Rc;

/// The services of a server.
#[derive(Default)]
pub struct Router {
    services: Vec<Rc<dyn Service>>,
}

impl Router {
    /// No service yet.
    pub fn new() -> Router {
        Router::default()
    }

    /// Adds a service. A later one of the same name takes its place.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "a builder's step, not a sum")]
    pub fn add(mut self, service: Rc<dyn Service>) -> Router {
        self.services.retain(|other| other.name() != service.name());
        self.services.push(service);
        self
    }

    /// Finds what `path`, such as `/tikvpb.Tikv/RawGet`, names.
    ///
    /// # Errors
    /// UNIMPLEMENTED if there is no such service or method.
    pub(crate) fn find<'a>(&self, path: &'a str) -> Result<(&Rc<dyn Service>, &'a str, Shape), Status> {
        let (name, method) = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .ok_or_else(|| Status::unimplemented(format!("malformed method name: {path:?}")))?;
        // A server has two to six services: looking at each beats hashing.
        let service = self
            .services
            .iter()
            .find(|service| service.name() == name)
            .ok_or_else(|| Status::unimplemented(format!("unknown service {name}")))?;
        let shape = service.shape(method).ok_or_else(|| Status::no_method(name, method))?;
        Ok((service, method, shape))
    }
}
