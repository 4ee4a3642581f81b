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
    let server = server();
    let ready = serde_json::json!({ "address": address.to_string(), "pid": std::process::id() });
    println!("{}", serde_json::json!({ "ready": ready }));
    let accept = executor::spawn_local(Class::Foreground, async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = server.clone();
                    executor::spawn_local(Class::Foreground, async move { server.serve(stream).await });
                }
                Err(_) => executor::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    });
    executor::shutdown_signal().await;
    accept.cancel();
}

fn server() -> Server {
    let metrics = Rc::new(NetMetrics::default());
    let router = Rc::new(Router::new().add(Rc::new(net::echo::Echo)));
    let page = Rc::new(Page(Rc::clone(&metrics)));
    Server::new(router, Some(page), ServerConfig::default(), metrics)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::{self, Client, Keys, Progress};
    use crate::metrics::Counters;
    use crate::workload::{Carriage, Operation, Workload};

    /// Sends each of 1,000 keys once over one connection; returns the commands that were answered.
    async fn load(address: std::net::SocketAddr, carriage: Carriage) -> Result<u64, String> {
        let workload = Workload::new(Operation::Echo, carriage);
        let progress = Rc::new(Progress::new());
        let client = Client::new(
            workload,
            &proto::kvrpcpb::Context::default(),
            (5, workload.commands(8)),
            Keys::EachOnce { count: 1000 },
            base::Prng::new(1),
            Rc::clone(&progress),
        );
        connection::run(address, None, client).await?;
        Ok(progress.commands.get())
    }

    #[test]
    fn the_generator_and_our_server_understand_each_other() {
        let done = executor::run_one(IoChoice::Epoll, || async {
            let listener = TcpListener::bind(([127, 0, 0, 1], 0).into()).await;
            let listener = listener.map_err(|error| error.to_string())?;
            let address = listener.local_addr().map_err(|error| error.to_string())?;
            executor::spawn_local(Class::Foreground, async move {
                let server = server();
                while let Ok((stream, _)) = listener.accept().await {
                    let server = server.clone();
                    executor::spawn_local(Class::Foreground, async move { server.serve(stream).await });
                }
            });
            let unary = load(address, Carriage::Unary).await?;
            let batched = load(address, Carriage::Batched).await?;
            let counters = Counters::fetch(address, None).await?;
            Ok::<_, String>((unary, batched, counters.value("basalt_net_socket_reads_total")))
        });
        let (unary, batched, reads) = done.expect("both loads end");
        assert_eq!((unary, batched), (1000, 1000));
        assert!(reads >= 1.0);
    }
}
