//! Stories of device plugins, with a plugin written here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cri::device::{
    AllocateRequest, AllocateResponse, Allocation, Device, Devices, Nothing, PluginOptions,
    PreStartRequest, RegisterRequest, VERSION, register,
};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::{LIMIT, Node, first, is_ready, one, path};

const CARD: &str = "example.org/card";

fn list(cards: &[(&str, bool)]) -> Vec<(String, bool)> {
    cards.iter().map(|(id, healthy)| ((*id).to_owned(), *healthy)).collect()
}

/// A plugin of cards; what it is asked is written down.
struct Plugin {
    dir: PathBuf,
    cards: watch::Sender<Vec<(String, bool)>>,
    asked: Arc<Mutex<Vec<String>>>,
    tasks: JoinSet<()>,
}

impl Plugin {
    fn new(dir: &Path, cards: &[(&str, bool)]) -> Self {
        let (cards, _) = watch::channel(list(cards));
        Self { dir: dir.to_owned(), cards, asked: Arc::default(), tasks: JoinSet::new() }
    }

    /// Serves at a socket of its own and registers, as plugins do when they find a new agent.
    async fn start(&mut self) {
        self.tasks.shutdown().await;
        let listener = loop {
            // The agent clears the directory before its own socket is there.
            if self.dir.join("kubelet.sock").exists() {
                drop(std::fs::remove_file(self.dir.join("card.sock")));
                break UnixListener::bind(self.dir.join("card.sock")).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let (cards, asked) = (self.cards.clone(), Arc::clone(&self.asked));
        self.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (cards, asked) = (cards.clone(), Arc::clone(&asked));
                let answer = hyper::service::service_fn(move |request| {
                    let (cards, asked) = (cards.clone(), Arc::clone(&asked));
                    async move { Ok::<_, Status>(dispatch(&cards, asked, request).await) }
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                connections.spawn(async move {
                    drop(http.serve_connection(TokioIo::new(stream), answer).await);
                });
            }
        });
        let request = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: "card.sock".to_owned(),
            resource_name: CARD.to_owned(),
            options: Some(PluginOptions { pre_start_required: true, ..PluginOptions::default() }),
        };
        let limit = Instant::now() + LIMIT;
        while let Err(err) = register(&self.dir.join("kubelet.sock"), request.clone()).await {
            assert!(Instant::now() < limit, "never taken: {err:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn dispatch(
    cards: &watch::Sender<Vec<(String, bool)>>,
    asked: Arc<Mutex<Vec<String>>>,
    request: http::Request<Incoming>,
) -> http::Response<Body> {
    let path = request.uri().path().to_owned();
    match path.rsplit('/').next().unwrap() {
        "ListAndWatch" => {
            let lists = futures_util::stream::unfold(
                (cards.subscribe(), false),
                |(mut cards, told)| async move {
                    if told {
                        cards.changed().await.ok()?;
                    }
                    let device = |(id, healthy): &(String, bool)| Device {
                        id: id.clone(),
                        health: if *healthy { "Healthy" } else { "Unhealthy" }.to_owned(),
                    };
                    let devices = cards.borrow_and_update().iter().map(device).collect();
                    Some((Ok::<_, Status>(Devices { devices }), (cards, true)))
                },
            );
            let lists = Mutex::new(Some(lists));
            let work = service_fn(move |_: Request<Nothing>| {
                let lists = lists.lock().unwrap().take().unwrap();
                async move { Ok::<_, Status>(Response::new(lists)) }
            });
            let codec = ProstCodec::<Devices, Nothing>::default();
            tonic::server::Grpc::new(codec).server_streaming(work, request).await
        }
        "Allocate" => {
            let work = service_fn(move |request: Request<AllocateRequest>| {
                let ids = request.into_inner().containers[0].ids.join(",");
                asked.lock().unwrap().push(format!("allocate {ids}"));
                let envs = [("CARD".to_owned(), ids)].into();
                let allocation = Allocation { envs, ..Allocation::default() };
                let answer = AllocateResponse { containers: vec![allocation] };
                async move { Ok::<_, Status>(Response::new(answer)) }
            });
            let codec = ProstCodec::<AllocateResponse, AllocateRequest>::default();
            tonic::server::Grpc::new(codec).unary(work, request).await
        }
        "PreStartContainer" => {
            let work = service_fn(move |request: Request<PreStartRequest>| {
                asked.lock().unwrap().push(format!("start {}", request.into_inner().ids.join(",")));
                async move { Ok::<_, Status>(Response::new(Nothing {})) }
            });
            let codec = ProstCodec::<Nothing, PreStartRequest>::default();
            tonic::server::Grpc::new(codec).unary(work, request).await
        }
        _ => Status::unimplemented(path).into_http(),
    }
}

impl Node {
    async fn await_cards(&self, all: &str, healthy: &str) {
        let limit = Instant::now() + LIMIT;
        loop {
            let node = self.api.get("/api/v1/nodes/w1").unwrap_or_default();
            let status = &node["status"];
            let told = (&status["capacity"][CARD], &status["allocatable"][CARD]);
            if told == (&json!(all), &json!(healthy)) {
                return;
            }
            assert!(Instant::now() < limit, "the node tells of {told:?}, not {all} and {healthy}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugins_devices_go_to_one_container_each_through_restarts() {
    let Some(mut node) = Node::start().await else { return };
    let mut plugin =
        Plugin::new(&node.containerd.dir().join("plugins"), &[("a", true), ("b", true)]);
    plugin.start().await;
    node.await_cards("2", "2").await;
    let asking = |script: &str| {
        let mut spec = one(script);
        spec["containers"][0]["resources"] = json!({"limits": {CARD: "1"}});
        spec
    };
    // The first one ends once, and has the same card in its second life.
    node.create("one", asking("echo card $CARD; test -e /tmp/x || sleep 1; exit 1"));
    node.create("two", asking("echo card $CARD; sleep 1000"));
    node.await_pod("one", |pod| first(pod)["restartCount"].as_i64() > Some(0)).await;
    node.await_pod("two", is_ready).await;
    let cards = [node.await_line("one").await, node.await_line("two").await];
    let mut sorted = cards.clone();
    sorted.sort();
    assert_eq!(sorted, ["card a\n", "card b\n"]);
    let count = |what: &str| plugin.asked().iter().filter(|asked| asked.starts_with(what)).count();
    assert_eq!(count("allocate"), 2, "{:?}", plugin.asked());
    assert!(count("start") >= 3, "{:?}", plugin.asked());

    // There is no third one.
    node.create("three", asking("sleep 1000"));
    let three = node.await_pod("three", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(three["status"]["reason"], format!("OutOf{CARD}"));

    // A new agent knows who has what, and counts only what is healthy.
    node.kill_agent().await;
    std::fs::remove_file(node.containerd.dir().join("plugins/kubelet.sock")).unwrap();
    node.start_agent();
    plugin.start().await;
    plugin.cards.send_replace(list(&[("a", false), ("b", true)]));
    node.await_cards("2", "1").await;
    node.create("four", asking("echo card $CARD; sleep 1000"));
    node.await_pod("four", |pod| pod["status"]["phase"] == "Failed").await;
    plugin.cards.send_replace(list(&[("a", true), ("b", true)]));
    node.await_cards("2", "2").await;
    for name in ["one", "two"] {
        node.api.delete_gracefully(&path(name), 1);
        node.await_gone(name).await;
    }
    node.create("five", asking("echo card $CARD; sleep 1000"));
    node.await_pod("five", is_ready).await;

    // A plugin that goes takes its devices along.
    plugin.tasks.shutdown().await;
    node.await_cards("2", "0").await;
    node.kill_agent().await;
}
