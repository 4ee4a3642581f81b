//! The bare HTTP/2 echo as a process of its own: what `net` costs without anything behind it.

use std::rc::Rc;

use executor::net::TcpListener;
use executor::{Class, CoresConfig, IoChoice};
use net::{HttpHandler, HttpRequest, HttpResponse, NetMetrics, Router, Server, ServerConfig};
use proto::rpc::LocalFuture;

/// How the echo server runs.
#[derive(clap::Args)]
pub(crate) struct EchoServerArgs {
    /// How it does I/O: auto, uring or epoll.
    #[arg(long, default_value = "auto")]
    io: IoChoice,
}

/// Serves until it is asked to stop, or the process that started it ends.
pub(crate) fn run(args: &EchoServerArgs) -> Result<(), String> {
    executor::die_with_parent().map_err(|error| error.to_string())?;
    let config = CoresConfig {
        cores: 1,
        io: args.io,
        name: "echo".to_owned(),
        // As in a node that `basalt dev` starts.
        idle_spin: std::time::Duration::ZERO,
        ..CoresConfig::default()
    };
    executor::run_cores(config, |_| Box::pin(serve())).map_err(|error| error.to_string())
}

async fn serve() {
    let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).await;
    let listener = listener.expect("loopback has a free port");
    let address = listener.local_addr().expect("it is bound");
    let metrics = Rc::new(NetMetrics::default());
    let router = Rc::new(Router::new().add(Rc::new(net::echo::Echo)));
    let page = Rc::new(Page(Rc::clone(&metrics)));
    let server = Server::new(router, Some(page), ServerConfig::default(), metrics);
    let ready = serde_json::json!({ "address": address.to_string(), "pid": std::process::id() });
    println!("{}", serde_json::json!({ "ready": ready }));
    let accept = executor::spawn_local(Class::Foreground, async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = server.clone();
                    executor::spawn_local(
                        Class::Foreground,
                        async move { server.serve(stream).await },
                    );
                }
                Err(_) => executor::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    });
    executor::shutdown_signal().await;
    accept.cancel();
}

/// `/metrics`: the two counters that a node has too.
struct Page(Rc<NetMetrics>);

impl HttpHandler for Page {
    fn handle(&self, _request: HttpRequest) -> LocalFuture<HttpResponse> {
        let text = format!(
            "basalt_net_socket_reads_total {}\nbasalt_net_socket_writes_total {}\n",
            self.0.socket_reads_total.get(),
            self.0.socket_writes_total.get()
        );
        Box::pin(std::future::ready(HttpResponse::text(200, text)))
    }
}
