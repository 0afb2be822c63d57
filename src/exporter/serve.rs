//! One scraper: a request of a few lines, an answer, the end. HTTP/1.1 by `hyper`, which reads heads within limits.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::door::Stream;
use super::exposition::Format;

/// For a request's head, from the connection on.
const HEAD_WITHIN: Duration = Duration::from_secs(2);
/// For all of it, until the answer was taken. Scrapers give up after ten seconds.
const ALL_WITHIN: Duration = Duration::from_secs(10);
/// Longest request's head, bytes.
const HEAD_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// What somebody wants to know, and where the answer goes.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) what: What,
    pub(super) answer: oneshot::Sender<Answer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Metrics(Format),
    Health,
}

/// Ready to be sent.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) well: bool,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

/// Serves one request of one connection. Whatever a scraper does, it is over in time.
pub(super) async fn attend(stream: Stream, asks: mpsc::Sender<Ask>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let asks = asks.clone();
        async move { Ok::<_, Infallible>(respond(&request, &asks).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WITHIN)
        .max_buf_size(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .keep_alive(false)
        // Sent from where it is, whoever else reads the same: otherwise each connection has a copy of all of it. Our streams
        // have no writev(2), so that this is one send(2) after the other. A date takes time that nobody needs.
        .writev(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), service);
    // Who asks nonsense, or nothing, or goes: that is all there is to it.
    let _ = timeout(ALL_WITHIN, connection).await;
}

async fn respond(request: &Request<Incoming>, asks: &mpsc::Sender<Ask>) -> Response<Full<Bytes>> {
    let what = match request.uri().path() {
        "/metrics" => What::Metrics(wanted(request.headers())),
        "/healthz" => What::Health,
        _ => return plain(StatusCode::NOT_FOUND, "there are /metrics and /healthz\n"),
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "only to be read\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (answer, answered) = oneshot::channel();
    let sent = asks.send(Ask { what, answer }).await.is_ok();
    let Some(answer) = (if sent { answered.await.ok() } else { None }) else {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "the service ends\n");
    };
    let status = if answer.well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Who can read OpenMetrics says so.
fn wanted(headers: &HeaderMap) -> Format {
    let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let mut types = accepts.flat_map(|value| value.split(','));
    let open = types.any(|one| {
        let name = one.split(';').next().unwrap_or_default().trim();
        name.eq_ignore_ascii_case("application/openmetrics-text")
    });
    if open { Format::OpenMetrics } else { Format::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_openmetrics_gets_it_and_others_what_all_can_read() {
        let of = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            wanted(&headers)
        };
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(of(prometheus), Format::OpenMetrics);
        assert_eq!(of("text/plain, Application/OpenMetrics-Text"), Format::OpenMetrics);
        for plain in ["*/*", "text/plain;version=0.0.4", "text/html", "application/openmetrics-text2"] {
            assert_eq!(of(plain), Format::Text, "{plain}");
        }
        assert_eq!(wanted(&HeaderMap::new()), Format::Text);
    }
}
