//! Traces: what a request has led to, span by span, for a collector of OpenTelemetry's. Floor 0.
//!
//! Where nothing is traced all of this is nothing: no memory is taken, no clock looked at.

mod context;
mod otlp;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::mpsc;

use context::{Context, SpanId};

pub use otlp::export;

/// Begins traces. Clones begin them for the same collector; by default there is none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Collecting>>);

struct Collecting {
    /// Of all traces, those are told whose ID is no greater.
    most: u64,
    to: mpsc::Sender<Ended>,
    lost: Box<dyn Fn() + Send + Sync>,
}

/// A place in a trace, from which it goes on. By default in none.
#[derive(Clone, Default)]
pub struct Trace(Option<Arc<Place>>);

struct Place {
    collecting: Arc<Collecting>,
    context: Context,
    /// Spans of others that this one shares.
    links: Mutex<Vec<Context>>,
}

/// Something that takes time. Told when it is dropped, which is its end.
#[derive(Default)]
pub struct Span(Option<Box<Running>>);

struct Running {
    place: Arc<Place>,
    parent: Option<SpanId>,
    name: String,
    kind: SpanKind,
    /// By the clock on the wall, and by the one that is never set.
    began: (SystemTime, Instant),
    attributes: Vec<(&'static str, Value)>,
    error: Option<String>,
}

/// On which side of a request it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    Internal,
    Server,
    Client,
}

/// What is told with a span.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(i64),
}

/// A span that has ended.
pub struct Ended {
    context: Context,
    parent: Option<SpanId>,
    name: String,
    kind: SpanKind,
    began: SystemTime,
    until: SystemTime,
    attributes: Vec<(&'static str, Value)>,
    links: Vec<Context>,
    error: Option<String>,
}

/// So many spans wait for the collector; more are lost.
const WAITING: usize = 4096;
/// A request shares no more of others' work than is worth telling.
const MOST_LINKS: usize = 32;

// === impl Tracer ===

impl Tracer {
    /// For a collector that takes what comes out. `ratio`: of how many traces, of 1. `lost` is called for each span that finds no room.
    #[must_use]
    pub fn new(ratio: f64, lost: impl Fn() + Send + Sync + 'static) -> (Self, mpsc::Receiver<Ended>) {
        let (to, spans) = mpsc::channel(WAITING);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss, reason = "it saturates")]
        let most = (ratio.clamp(0.0, 1.0) * u64::MAX as f64) as u64;
        (Self(Some(Arc::new(Collecting { most, to, lost: Box::new(lost) }))), spans)
    }

    /// A client's request, and what it says of the trace that it belongs to (<https://www.w3.org/TR/trace-context/#traceparent-header>).
    ///
    /// The ID of the trace alone decides whether it is told, as with all who sample by it: a client can keep its own from being told,
    /// but not have more of them told than the operator wants.
    #[must_use]
    pub fn request(&self, traceparent: impl FnOnce() -> Option<String>) -> Span {
        let Some(collecting) = &self.0 else { return Span(None) };
        let told = traceparent().as_deref().and_then(context::parse);
        let (trace, parent) = match told {
            Some(told) if !told.sampled => return Span(None),
            Some(told) => (told.context.trace, Some(told.context.span)),
            None => (context::new_trace(), None),
        };
        if collecting.most < u64::MAX && context::rank(trace) > collecting.most || collecting.most == 0 {
            return Span(None);
        }
        Span::begin(collecting, Context { trace, span: context::new_span() }, parent, SpanKind::Server)
    }
}

// === impl Trace ===

impl Trace {
    /// Something that is done because of it.
    #[must_use]
    pub fn begin(&self, name: impl FnOnce() -> String, kind: SpanKind) -> Span {
        let Some(place) = &self.0 else { return Span(None) };
        let context = Context { trace: place.context.trace, span: context::new_span() };
        let mut span = Span::begin(&place.collecting, context, Some(place.context.span), kind);
        span.name(name);
        span
    }

    /// It shares what another request has begun.
    pub fn shares(&self, other: &Self) {
        if let (Some(place), Some(other)) = (&self.0, &other.0) {
            let mut links = place.links.lock().unwrap_or_else(PoisonError::into_inner);
            if links.len() < MOST_LINKS && !links.contains(&other.context) {
                links.push(other.context);
            }
        }
    }
}

// === impl Span ===

impl Span {
    fn begin(collecting: &Arc<Collecting>, context: Context, parent: Option<SpanId>, kind: SpanKind) -> Self {
        let place = Arc::new(Place { collecting: Arc::clone(collecting), context, links: Mutex::default() });
        let began = (SystemTime::now(), Instant::now());
        Self(Some(Box::new(Running { place, parent, name: String::new(), kind, began, attributes: Vec::new(), error: None })))
    }

    /// Where what is done because of it goes on.
    #[must_use]
    pub fn trace(&self) -> Trace {
        Trace(self.0.as_ref().map(|running| Arc::clone(&running.place)))
    }

    /// Few words, the same for many.
    pub fn name(&mut self, name: impl FnOnce() -> String) {
        if let Some(running) = &mut self.0 {
            running.name = name();
        }
    }

    pub fn number(&mut self, key: &'static str, number: impl TryInto<i64>) {
        if let Some(running) = &mut self.0 {
            running.attributes.push((key, Value::Number(number.try_into().unwrap_or(i64::MAX))));
        }
    }

    pub fn text<T: fmt::Display>(&mut self, key: &'static str, text: impl FnOnce() -> T) {
        if let Some(running) = &mut self.0 {
            let text = text().to_string();
            if !text.is_empty() {
                running.attributes.push((key, Value::Text(text)));
            }
        }
    }

    /// It has come to nothing.
    pub fn failed(&mut self, why: impl fmt::Display) {
        self.0.iter_mut().for_each(|running| running.error = Some(why.to_string()));
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(running) = self.0.take() else { return };
        let Running { place, parent, name, kind, began: (began, since), attributes, error } = *running;
        let links = std::mem::take(&mut *place.links.lock().unwrap_or_else(PoisonError::into_inner));
        let ended =
            Ended { context: place.context, parent, name, kind, began, until: began + since.elapsed(), attributes, links, error };
        if place.collecting.to.try_send(ended).is_err() {
            (place.collecting.lost)();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn told(spans: &mut mpsc::Receiver<Ended>) -> Vec<Ended> {
        std::iter::from_fn(|| spans.try_recv().ok()).collect()
    }

    #[test]
    fn what_a_request_leads_to_goes_on_in_its_trace() {
        let (tracer, mut spans) = Tracer::new(1.0, || panic!("there is room"));
        let mut request = tracer.request(|| Some(SAMPLED.into()));
        let fill = request.trace().begin(|| "fill".into(), SpanKind::Internal);
        let asked = fill.trace().begin(|| "GET blob".into(), SpanKind::Client);
        let other = tracer.request(|| None);
        other.trace().shares(&fill.trace());
        other.trace().shares(&fill.trace());
        request.number("http.response.status_code", 200);
        request.failed("no");
        [asked, fill, request, other].into_iter().for_each(drop);
        let [asked, fill, request, other] = &told(&mut spans)[..] else { panic!("four spans") };
        assert_eq!(format!("{:032x}", request.context.trace), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(request.parent.map(|parent| format!("{parent:016x}")).as_deref(), Some("b7ad6b7169203331"));
        assert_eq!([fill.parent, asked.parent], [Some(request.context.span), Some(fill.context.span)]);
        assert!([fill, asked].iter().all(|span| span.context.trace == request.context.trace));
        assert_eq!((other.parent, &other.links[..]), (None, &[fill.context][..]));
        assert_ne!(other.context.trace, request.context.trace);
        assert_eq!(
            (&request.attributes[..], request.error.as_deref()),
            (&[("http.response.status_code", Value::Number(200))][..], Some("no"))
        );
        assert!(request.began <= request.until);
    }

    #[test]
    fn as_many_are_told_as_is_wanted_whatever_clients_want() {
        let (tracer, mut spans) = Tracer::new(0.1, || {});
        for _ in 0..2000 {
            drop(tracer.request(|| None));
        }
        let number = told(&mut spans).len();
        assert!((100..320).contains(&number), "{number} of 2,000");
        // By the ID of the trace, which others sample by as well.
        for (id, number) in [("0af7651916cd43dd0048eb211c80319c", 1), ("0af7651916cd43ddf048eb211c80319c", 0)] {
            drop(tracer.request(|| Some(format!("00-{id}-b7ad6b7169203331-01"))));
            assert_eq!(told(&mut spans).len(), number, "{id}");
        }
        let (all, mut spans) = Tracer::new(1.0, || {});
        drop(all.request(|| Some(SAMPLED.replace("-01", "-00"))));
        assert_eq!(told(&mut spans).len(), 0, "its client does not want it to be told");
        let (none, mut spans) = Tracer::new(0.0, || {});
        drop(none.request(|| Some(SAMPLED.into())));
        assert_eq!(told(&mut spans).len(), 0);
        let off = Tracer::default().request(|| panic!("nobody asks"));
        drop(off.trace().begin(|| "fill".into(), SpanKind::Internal));
    }

    #[test]
    fn spans_that_find_no_room_are_counted() {
        let lost = Arc::new(AtomicUsize::new(0));
        let counting = Arc::clone(&lost);
        let (tracer, _spans) = Tracer::new(1.0, move || _ = counting.fetch_add(1, Ordering::Relaxed));
        for _ in 0..WAITING + 3 {
            drop(tracer.request(|| None));
        }
        assert_eq!(lost.load(Ordering::Relaxed), 3);
    }
}
