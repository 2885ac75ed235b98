//! The HTTP server: one thread accepts connections, checks requests and waits for the compute
//! thread.

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

use crate::api::{Endpoint, MAX_BODY_BYTES};
use crate::assets;
use crate::error::ApiError;
use crate::handlers::handle;
use crate::origin_check::{check_host, check_json, check_origin};
use crate::state::AppState;
use crate::worker::{Worker, WorkerExit};

/// The maximum number of open connections. Further clients wait until one is closed.
const MAX_CONNECTIONS: usize = 256;
/// The time limit for the headers and for the body of a request, and for a client to receive data.
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// The time limit for open requests when the server shuts down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// The interval between checks for a stop request.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The headers of every response. They restrict the page to its own scripts, styles and
/// connections, and prevent other pages from embedding it.
const SECURITY_HEADERS: [(&str, &str); 7] = [
    (
        "content-security-policy",
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    // The next server at this address can have another model.
    ("cache-control", "no-store"),
];

/// The address that the server listens on.
#[derive(Debug, Clone, Copy)]
pub struct ListenAddress {
    /// An IP address of this machine.
    pub host: IpAddr,
    /// The port; 0 selects a free one.
    pub port: u16,
}

/// A request to the API: the endpoint and the body.
type ApiRequest = (Endpoint, Bytes);

/// Serves the explorer until `should_stop` returns true; it is called 20 times per second. `load`
/// is called in the compute thread, and again after a panic there. `on_listening` receives the
/// address.
///
/// # Errors
/// The server cannot listen on the address, or `load` fails.
pub fn serve(
    address: ListenAddress,
    load: impl Fn() -> Result<AppState> + Send + 'static,
    on_listening: impl FnOnce(SocketAddr) -> Result<()>,
    should_stop: impl Fn() -> bool,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = runtime.block_on(TcpListener::bind((address.host, address.port))).with_context(|| {
        format!(
            "cannot listen on {}:{}: choose another --port (0 selects a free one) or --host",
            address.host, address.port
        )
    })?;
    let (worker, exit) =
        Worker::start(load, |state: &mut AppState, (endpoint, body): ApiRequest| handle(state, endpoint, &body))?;
    let bound = listener.local_addr()?;
    on_listening(bound)?;
    let server = Arc::new(Server { worker, bound: bound.ip() });
    runtime.block_on(accept(listener, server, exit, should_stop))
}

async fn accept(
    listener: TcpListener,
    server: Arc<Server>,
    mut exit: WorkerExit,
    should_stop: impl Fn() -> bool,
) -> Result<()> {
    let (connections, permits) = (GracefulShutdown::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(READ_TIMEOUT);
    let mut stopped = pin!(async {
        while !should_stop() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    });
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        tokio::select! {
            () = &mut stopped => break,
            result = &mut exit => return result.unwrap_or(Ok(())),
            (permit, accepted) = next => match accepted {
                Ok((stream, _)) => {
                    // Close connections whose client does not receive the response. Not all systems
                    // support this option, and the server works without it.
                    let _ = set_tcp_user_timeout(&stream, READ_TIMEOUT.as_millis() as u32);
                    let server = Arc::clone(&server);
                    let service = service_fn(move |request| {
                        let server = Arc::clone(&server);
                        async move { Ok::<_, Infallible>(server.respond(request).await) }
                    });
                    let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
                    tokio::spawn(async move {
                        let _ = connection.await; // a disconnected client is not an error
                        drop(permit);
                    });
                }
                // Probably no file descriptor is free; retry later.
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            },
        }
    }
    drop(listener);
    let _ = timeout(SHUTDOWN_TIMEOUT, connections.shutdown()).await;
    Ok(())
}

/// Routes requests to the files of the page and to the compute thread.
struct Server {
    worker: Worker<ApiRequest>,
    bound: IpAddr,
}

impl Server {
    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, allow, content_type, body) = match self.route(request).await {
            Ok((content_type, body)) => (StatusCode::OK, None, content_type, body),
            Err(error) => (error.status, error.allow, JSON, Bytes::from(error.json())),
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        for (name, value) in SECURITY_HEADERS {
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

    /// Returns the content type and the body of a file of the page or of an API response.
    async fn route(&self, request: Request<Incoming>) -> Result<(&'static str, Bytes), ApiError> {
        check_host(request.headers(), self.bound)?;
        let is_read = [Method::GET, Method::HEAD].contains(request.method());
        let path = request.uri().path();
        if let Some((content_type, text)) = assets::at(path) {
            return if is_read {
                Ok((content_type, Bytes::from_static(text.as_bytes())))
            } else {
                Err(wrong_method(&request, READ_METHODS))
            };
        }
        let endpoint = Endpoint::from_path(path).ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, format!("unknown path {path}: docs/explorer.md lists the API"))
        })?;
        check_origin(request.headers())?;
        let body = if endpoint == Endpoint::Model {
            if !is_read {
                return Err(wrong_method(&request, READ_METHODS));
            }
            Bytes::new()
        } else {
            if request.method() != Method::POST {
                return Err(wrong_method(&request, "POST"));
            }
            check_json(request.headers())?;
            read_body(request.into_body()).await?
        };
        let response = self.worker.submit((endpoint, body)).await?;
        Ok((JSON, Bytes::from(response)))
    }
}

const JSON: &str = "application/json";

const READ_METHODS: &str = "GET, HEAD";

fn wrong_method(request: &Request<Incoming>, allow: &'static str) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    ApiError::method_not_allowed(format!("{method} is not allowed for {path}: use {allow}"), allow)
}

async fn read_body(body: Incoming) -> Result<Bytes, ApiError> {
    let whole = timeout(READ_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let late =
        |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request did not arrive within 15 seconds: send it again");
    whole.map_err(late)?.map(|whole| whole.to_bytes()).map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::too_large(format!("the request is larger than {} KiB: shorten it", MAX_BODY_BYTES >> 10))
        } else {
            ApiError::bad_request(format!("the request is incomplete: {error}"))
        }
    })
}
