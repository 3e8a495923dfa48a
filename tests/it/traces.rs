//! Traces: what a collector of OpenTelemetry's is told of requests, fills and what upstreams are asked.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::support::{Fault, Image, Log, Match, Registry, StoppedMirror, TestMirror, until};

const MIB: usize = 1 << 20;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT: &str = "b7ad6b7169203331";

/// A server that takes traces as a collector does.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Value>>>,
    /// What it answers.
    status: Arc<AtomicU16>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector =
            Self { address: listener.local_addr().unwrap(), spans: Arc::default(), status: Arc::new(AtomicU16::new(200)) };
        let (spans, status) = (Arc::clone(&collector.spans), Arc::clone(&collector.status));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (spans, status) = (Arc::clone(&spans), Arc::clone(&status));
                let service = service_fn(move |request| take(request, Arc::clone(&spans), Arc::clone(&status)));
                tokio::spawn(async move { http1::Builder::new().serve_connection(TokioIo::new(stream), service).await });
            }
        });
        collector
    }

    fn told(&self) -> Vec<Value> {
        self.spans.lock().unwrap().clone()
    }

    /// So many of them, in the order of their names.
    async fn spans(&self, number: usize) -> Vec<Value> {
        until("as many spans", || self.told().len() >= number).await;
        let mut spans = self.told();
        assert_eq!(spans.len(), number, "{spans:#?}");
        spans.sort_by_key(|span| span["name"].as_str().unwrap().to_owned());
        spans
    }

    fn of(&self, mirror: StoppedMirror) -> StoppedMirror {
        mirror.set(&format!("traces.endpoint = 'http://{}/v1/traces'", self.address))
    }
}

async fn take(
    request: Request<Incoming>,
    spans: Arc<Mutex<Vec<Value>>>,
    status: Arc<AtomicU16>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let asked = (head.method.as_str(), head.uri.path(), head.headers["content-type"].to_str().unwrap());
    assert_eq!(asked, ("POST", "/v1/traces", "application/json"));
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    let status = status.load(Ordering::Relaxed);
    if status == 200 {
        let of = &body["resourceSpans"][0];
        let service = &of["resource"]["attributes"][0];
        assert_eq!((&service["key"], &service["value"]["stringValue"]), (&"service.name".into(), &"larder".into()));
        spans.lock().unwrap().extend(of["scopeSpans"][0]["spans"].as_array().unwrap().iter().cloned());
    }
    Ok(Response::builder().status(status).body(Full::from("{}")).unwrap())
}

/// An attribute, of whichever type.
fn of<'a>(span: &'a Value, key: &str) -> &'a str {
    let attributes = span["attributes"].as_array().unwrap();
    let value = attributes.iter().find(|attribute| attribute["key"] == key).map(|attribute| &attribute["value"]);
    let value = value.unwrap_or_else(|| panic!("{key}: {span:#}"));
    value["stringValue"].as_str().or(value["intValue"].as_str()).unwrap()
}

fn traceparent(flags: &str) -> String {
    format!("00-{TRACE}-{CLIENT}-{flags}")
}

#[tokio::test]
async fn a_pull_is_told_with_all_that_it_led_to_in_the_trace_of_its_client() {
    let (upstream, collector) = (Registry::start().await, Collector::start().await);
    let image = Image::new(1).layers(&[100_000]).put(&upstream, "library/app", "latest");
    let layer = &image.layers[0];
    let mirror = collector.of(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    mirror.get_with(&image.blob_path(layer), &[("traceparent", &traceparent("01"))]).await.expect(200);
    let spans = collector.spans(3).await;
    let [request, asked, fill] = &spans[..] else { panic!("three spans") };
    assert_eq!([&request["name"], &asked["name"], &fill["name"]], ["GET blob", "GET blob upstream", "fill"]);
    assert_eq!([&request["kind"], &asked["kind"], &fill["kind"]], [2, 3, 1]);
    assert!(spans.iter().all(|span| span["traceId"] == TRACE), "{spans:#?}");
    assert_eq!(request["parentSpanId"], CLIENT);
    assert_eq!([&fill["parentSpanId"], &asked["parentSpanId"]], [&request["spanId"], &fill["spanId"]]);
    assert_eq!([of(request, "larder.served"), of(request, "http.response.status_code")], ["miss", "200"]);
    assert_eq!([of(request, "http.response.body.size"), of(request, "larder.reference")], ["100000", &layer.digest]);
    assert_eq!([of(fill, "larder.outcome"), of(fill, "larder.digest")], ["kept", &layer.digest]);
    assert_eq!([of(asked, "larder.upstream"), of(asked, "http.response.status_code")], ["docker.io", "200"]);
    let times =
        |span: &Value| ["startTimeUnixNano", "endTimeUnixNano"].map(|key| span[key].as_str().unwrap().parse::<u64>().unwrap());
    assert!(times(request)[0] <= times(fill)[0] && times(fill)[0] <= times(asked)[0] && times(asked)[1] <= times(fill)[1]);
    assert!(upstream.requests().iter().all(|request| request.header("traceparent").is_none()), "that is no upstream's business");

    // A hit leads to nothing, and without a word of its client it is a trace of its own.
    mirror.get(&image.blob_path(layer)).await.expect(200);
    until("one more", || collector.told().len() == 4).await;
    let hit = &collector.told()[3];
    assert_eq!((of(hit, "larder.served"), &hit["parentSpanId"]), ("hit", &Value::Null));
    assert!(hit["traceId"] != TRACE && hit["traceId"].as_str().unwrap().len() == 32);
}

#[tokio::test]
async fn who_joins_a_fill_is_linked_to_it() {
    let (upstream, collector) = (Registry::start().await, Collector::start().await);
    let image = Image::new(2).layers(&[2 * MIB]).put(&upstream, "library/app", "latest");
    let path = image.blob_path(&image.layers[0]);
    upstream.on(Match::get(&image.layers[0].digest), Fault::Gate { after: MIB });
    let mirror = collector.of(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    let (first, second) = (mirror.stream(&path).await, mirror.stream(&path).await);
    upstream.release();
    first.rest().await.expect(200);
    second.rest().await.expect(200);
    let spans = collector.spans(4).await;
    let fill = spans.iter().find(|span| span["name"] == "fill").unwrap();
    let joined = spans.iter().find(|span| of_or(span, "larder.served") == Some("joined")).unwrap();
    let missed = spans.iter().find(|span| of_or(span, "larder.served") == Some("miss")).unwrap();
    assert_eq!((&missed["links"], &fill["parentSpanId"]), (&Value::Null, &missed["spanId"]));
    assert_eq!((&joined["links"][0]["traceId"], &joined["links"][0]["spanId"]), (&fill["traceId"], &fill["spanId"]));
    assert!(joined["links"].as_array().unwrap().len() == 1 && joined["traceId"] != fill["traceId"]);
}

fn of_or<'a>(span: &'a Value, key: &str) -> Option<&'a str> {
    let mut attributes = span["attributes"].as_array()?.iter();
    attributes.find(|attribute| attribute["key"] == key)?["value"]["stringValue"].as_str()
}

#[tokio::test]
async fn what_comes_to_nothing_is_told_as_an_error_and_what_is_under_way_at_a_stop_before_its_end() {
    let (upstream, collector) = (Registry::start().await, Collector::start().await);
    upstream.on(Match::get("/manifests/down"), Fault::status(500));
    let mirror = collector.of(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    mirror.get("/v2/library/app/manifests/down").await.expect(502);
    mirror.metric_is("larder_answers_total{served=\"refused\"}", 1).await;
    mirror.stop().await;
    let told = collector.told();
    let request = told.iter().find(|span| span["name"] == "GET manifest").unwrap_or_else(|| panic!("{told:#?}"));
    assert_eq!((&request["status"]["code"], of(request, "http.response.status_code")), (&2.into(), "502"));
    assert!(request["status"]["message"].as_str().unwrap().contains("unavailable"), "{request:#}");
    let asked: Vec<_> = told.iter().filter(|span| span["name"] == "GET manifest upstream").collect();
    assert_eq!((asked.len(), of(asked[0], "http.response.status_code")), (upstream.requests().len(), "500"));
}

#[tokio::test]
async fn nothing_is_told_of_what_is_not_sampled() {
    let (upstream, collector) = (Registry::start().await, Collector::start().await);
    let image = Image::new(3).put(&upstream, "library/app", "latest");
    let all = collector.of(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    all.get_with(&image.tag_path("latest"), &[("traceparent", &traceparent("00"))]).await.expect(200);
    all.metric_is("larder_answers_total{served=\"miss\"}", 1).await;
    all.stop().await;
    let none = collector.of(TestMirror::builder().upstream("docker.io", &upstream)).set("traces.sample_ratio = 0").start().await;
    none.get_with(&image.tag_path("latest"), &[("traceparent", &traceparent("01"))]).await.expect(200);
    none.metric_is("larder_answers_total{served=\"miss\"}", 1).await;
    none.stop().await;
    assert_eq!(collector.told(), Vec::<Value>::new());
}

#[tokio::test]
async fn a_collector_that_takes_nothing_costs_spans_and_nothing_else() {
    let (upstream, collector) = (Registry::start().await, Collector::start().await);
    let image = Image::new(4).put(&upstream, "library/app", "latest");
    let mirror = collector.of(TestMirror::builder().upstream("docker.io", &upstream)).start().await;
    let log = Log::from_here();
    collector.status.store(503, Ordering::Relaxed);
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    mirror.metric_is("larder_spans_lost_total", 2).await;
    log.will_say(&["WARN", "takes no traces", "503"]).await;
    collector.status.store(200, Ordering::Relaxed);
    assert_eq!(mirror.get(&image.tag_path("latest")).await.expect(200).body, image.manifest);
    assert_eq!(of(&collector.spans(1).await[0], "larder.served"), "hit");
    log.will_say(&["INFO", "takes traces again"]).await;
    assert_eq!(mirror.metric("larder_spans_lost_total"), 2);
}
