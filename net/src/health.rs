//! `grpc.health.v1`: what clients and load balancers ask before they trust a server.

use executor::Notify;
use proto::health::health_check_response::ServingStatus;
use proto::health::{self, HealthCheckRequest, HealthCheckResponse};
use proto::rpc::{CallContext, Outbound, Service, Status};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Whether a service does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It does.
    Yes,
    /// It does not, now.
    No,
    /// Nobody knows. client-go takes it as unknown liveness, not as an unreachable store.
    Unknown,
}

impl Serving {
    fn answer(self) -> HealthCheckResponse {
        answer(match self {
            Serving::Yes => ServingStatus::Serving,
            Serving::No => ServingStatus::NotServing,
            Serving::Unknown => ServingStatus::Unknown,
        })
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

/// The health service of one core. The empty name is the server as a whole, and serves from the start.
pub struct Health {
    services: RefCell<BTreeMap<String, Serving>>,
    changed: Notify,
    is_stopped: Cell<bool>,
}

impl Default for Health {
    fn default() -> Health {
        Health {
            services: RefCell::new(BTreeMap::from([(String::new(), Serving::Yes)])),
            changed: Notify::new(),
            is_stopped: Cell::new(false),
        }
    }
}

impl Health {
    /// The server as a whole serves; nothing else is known.
    pub fn new() -> Rc<Health> {
        Rc::default()
    }

    /// What a [`Router`](crate::Router) takes.
    pub fn service(self: &Rc<Self>) -> Rc<dyn Service> {
        Rc::new(health::HealthService::new(Rc::clone(self)))
    }

    /// Sets the status of a service (`""` for the server as a whole) and tells who watches it.
    pub fn set(&self, service: &str, serving: Serving) {
        self.services.borrow_mut().insert(service.to_owned(), serving);
        self.changed.notify();
    }

    /// The server stops: nothing serves any more, and who watches is told so and let go.
    pub fn stop(&self) {
        self.services.borrow_mut().values_mut().for_each(|serving| *serving = Serving::No);
        self.is_stopped.set(true);
        self.changed.notify();
    }

    fn find(&self, service: &str) -> Option<Serving> {
        self.services.borrow().get(service).copied()
    }
}

impl health::Health for Health {
    async fn check(&self, _cx: CallContext, request: HealthCheckRequest) -> Result<HealthCheckResponse, Status> {
        let serving = self.find(&request.service);
        let serving = serving.ok_or_else(|| Status::not_found(format!("unknown service {}", request.service)))?;
        Ok(serving.answer())
    }

    async fn watch(
        &self,
        _cx: CallContext,
        request: HealthCheckRequest,
        answers: Outbound<HealthCheckResponse>,
    ) -> Result<(), Status> {
        let mut told = None;
        loop {
            let changed = self.changed.notified();
            let serving = self.find(&request.service);
            if told != Some(serving) {
                let unknown = answer(ServingStatus::ServiceUnknown);
                answers.send(&serving.map_or(unknown, Serving::answer)).await?;
                told = Some(serving);
                continue;
            }
            if self.is_stopped.get() {
                return Err(Status::unavailable("the server stops"));
            }
            changed.await;
        }
    }
}
