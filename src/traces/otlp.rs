//! Spans as a collector takes them: OTLP over HTTP, in JSON (<https://opentelemetry.io/docs/specs/otlp/#otlphttp>).

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use super::{Context, Ended, SpanKind, Value};

/// The body of a request that brings these.
#[must_use]
pub fn export(spans: &[Ended]) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let resource =
        [("service.name", "larder"), ("service.version", version)].map(|(key, text)| attribute(key, &Value::Text(text.into())));
    let scope = json!({ "name": "larder", "version": version });
    let spans: Vec<_> = spans.iter().map(span).collect();
    json!({
        "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{ "scope": scope, "spans": spans }],
        }],
    })
    .to_string()
}

fn span(span: &Ended) -> serde_json::Value {
    let Ended { context, parent, name, kind, began, until, attributes, links, error } = span;
    let mut told = ids(*context);
    told["name"] = name.as_str().into();
    told["kind"] = match kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
    }
    .into();
    // Numbers of 64 bits are strings in the JSON of protocol buffers.
    told["startTimeUnixNano"] = nanos(*began).into();
    told["endTimeUnixNano"] = nanos(*until).into();
    told["attributes"] = attributes.iter().map(|(key, value)| attribute(key, value)).collect();
    parent.iter().for_each(|parent| told["parentSpanId"] = format!("{parent:016x}").into());
    if !links.is_empty() {
        told["links"] = links.iter().copied().map(ids).collect();
    }
    error.iter().for_each(|why| told["status"] = json!({ "code": 2, "message": why }));
    told
}

fn ids(Context { trace, span }: Context) -> serde_json::Value {
    json!({ "traceId": format!("{trace:032x}"), "spanId": format!("{span:016x}") })
}

fn attribute(key: &str, value: &Value) -> serde_json::Value {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": text }),
        Value::Number(number) => json!({ "intValue": number.to_string() }),
    };
    json!({ "key": key, "value": value })
}

fn nanos(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_span_is_written_as_the_collector_reads_it() {
        let began = UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_001);
        let ended = Ended {
            context: Context { trace: 1, span: 0xab },
            parent: Some(7),
            name: "GET blob".into(),
            kind: SpanKind::Server,
            began,
            until: began + Duration::from_millis(2),
            attributes: vec![("http.response.status_code", Value::Number(502)), ("larder.served", Value::Text("a\"b".into()))],
            links: vec![Context { trace: 2, span: 3 }],
            error: Some("no".into()),
        };
        let told: serde_json::Value = serde_json::from_str(&export(&[ended])).unwrap();
        let scopes = &told["resourceSpans"][0];
        assert_eq!(scopes["resource"]["attributes"][0], json!({ "key": "service.name", "value": { "stringValue": "larder" } }));
        assert_eq!(
            scopes["scopeSpans"][0]["spans"],
            json!([{
                "traceId": "00000000000000000000000000000001",
                "spanId": "00000000000000ab",
                "parentSpanId": "0000000000000007",
                "name": "GET blob",
                "kind": 2,
                "startTimeUnixNano": "1700000000000000001",
                "endTimeUnixNano": "1700000000002000001",
                "attributes": [
                    { "key": "http.response.status_code", "value": { "intValue": "502" } },
                    { "key": "larder.served", "value": { "stringValue": "a\"b" } },
                ],
                "links": [{ "traceId": "00000000000000000000000000000002", "spanId": "0000000000000003" }],
                "status": { "code": 2, "message": "no" },
            }])
        );
    }
}
