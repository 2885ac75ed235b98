//! HTTP: one thread that takes connections, checks requests and waits, never computes.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::api::{Endpoint, MOST_BYTES, too_large};
use crate::assets;
use crate::error::ApiError;
use crate::origin_check::{check_host, check_json, check_origin};
use crate::state::AppState;
use crate::worker::{Shutdown, Worker};

/// Connections at once; further ones wait to be taken.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to say what it wants, and to send it.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long requests that are there may take when the server ends.
const FAREWELL: Duration = Duration::from_secs(5);
/// How often it is asked whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// On every response. No script, style or connection but the page's own; in no frame of another page.
const HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    // Another model may be served at this address next time.
    ("cache-control", "no-store"),
];

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct ListenAddress {
    /// An address of this machine.
    pub host: IpAddr,
    /// 0 takes a free one.
    pub port: u16,
}

/// A request of the API: what is asked, and its body.
type ApiRequest = (Endpoint, Bytes);

/// Serves what `load` makes until `is_over`, which is asked 20 times a second; `listening` hears the address. `load` is
/// called in the thread that computes, and again after a failure there.
///
/// # Errors
/// When the address cannot be listened on, or the model cannot be loaded (again).
pub fn serve(
    address: ListenAddress,
    load: impl Fn() -> Result<AppState> + Send + 'static,
    listening: impl FnOnce(SocketAddr) -> Result<()>,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind((address.host, address.port))).with_context(|| {
        format!(
            "{}:{} cannot be listened on: choose another --port (0 takes a free one) or --host",
            address.host, address.port
        )
    })?;
    let (queue, ended) =
        Worker::start(load, |explorer: &mut AppState, (kind, body): ApiRequest| explorer.answer(kind, &body))?;
    let bound = listener.local_addr()?;
    listening(bound)?;
    let site = Arc::new(Server { queue, bound: bound.ip() });
    runtime.block_on(accept(listener, site, ended, is_over))
}

async fn accept(
    listener: TcpListener,
    site: Arc<Server>,
    mut ended: Shutdown,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    let (connections, places) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    let mut over = pin!(async {
        while !is_over() {
            tokio::time::sleep(LOOK).await;
        }
    });
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut over => break,
            result = &mut ended => return result.unwrap_or(Ok(())),
            (place, accepted) = next => match accepted {
                Ok((stream, _)) => {
                    // One that takes no answer is let go of; nothing depends on the system's knowing this.
                    let _ = set_tcp_user_timeout(&stream, PATIENCE.as_millis() as u32);
                    let site = Arc::clone(&site);
                    let service = service_fn(move |request| {
                        let site = Arc::clone(&site);
                        async move { Ok::<_, Infallible>(site.respond(request).await) }
                    });
                    let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
                    tokio::spawn(async move {
                        let _ = connection.await; // a client that went away is nobody's error
                        drop(place);
                    });
                }
                // Out of file descriptors, most likely: some are free again soon.
                Err(_) => tokio::time::sleep(LOOK).await,
            },
        }
    }
    drop(listener);
    let _ = timeout(FAREWELL, connections.shutdown()).await;
    Ok(())
}

/// What there is to be asked.
struct Server {
    queue: Worker<ApiRequest>,
    bound: IpAddr,
}

impl Server {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, allow, content_type, body) = match self.answer(request).await {
            Ok((content_type, body)) => (StatusCode::OK, None, content_type, body),
            Err(refusal) => (refusal.status, refusal.allow, JSON, Bytes::from(refusal.json())),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(allow) = allow {
            headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }

    /// A file of the page, or an answer of the API.
    async fn answer(&self, request: Request<Incoming>) -> Result<(&'static str, Bytes), ApiError> {
        check_host(request.headers(), self.bound)?;
        let is_read = [Method::GET, Method::HEAD].contains(request.method());
        let path = request.uri().path();
        if let Some((content_type, text)) = assets::at(path) {
            return if is_read {
                Ok((content_type, Bytes::from_static(text.as_bytes())))
            } else {
                Err(wrong_method(&request, READ))
            };
        }
        let kind = Endpoint::at(path).ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}: docs/explorer.md lists the API"))
        })?;
        check_origin(request.headers())?;
        let body = if kind == Endpoint::Model {
            if !is_read {
                return Err(wrong_method(&request, READ));
            }
            Bytes::new()
        } else {
            if request.method() != Method::POST {
                return Err(wrong_method(&request, "POST"));
            }
            check_json(request.headers())?;
            body(request.into_body()).await?
        };
        let answer = self.queue.ask((kind, body)).await?;
        Ok((JSON, Bytes::from(answer)))
    }
}

const JSON: &str = "application/json";

const READ: &str = "GET, HEAD";

fn wrong_method(request: &Request<Incoming>, allow: &'static str) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::method(format!("{method} is not for {path}: the header Allow says what is"), allow)
}

async fn body(body: Incoming) -> Result<Bytes, ApiError> {
    let whole = timeout(PATIENCE, Limited::new(body, MOST_BYTES).collect()).await;
    let late =
        |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive in 15 seconds: send it again");
    whole.map_err(late)?.map(|whole| whole.to_bytes()).map_err(|error| {
        if error.is::<LengthLimitError>() {
            too_large(format!("the request is larger than {} kB: shorten it", MOST_BYTES >> 10))
        } else {
            ApiError::bad(format!("the request did not arrive whole: {error}"))
        }
    })
}
