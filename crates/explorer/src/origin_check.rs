//! Access control by headers: requests come from this server's own page or from the user's
//! programs, not from other pages in the browser.

use std::net::IpAddr;

use hyper::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, StatusCode};

use crate::error::ApiError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Checks that `Host` is a name of this server, to prevent DNS rebinding: a page that points its
/// own name at this server sends that name. Numeric addresses and `localhost` cannot be rebound.
/// The port is not checked, because it differs behind `ssh -L`.
///
/// # Errors
/// 400 if there is no `Host`, 403 if it is another name.
pub(crate) fn check_host(headers: &HeaderMap, bound: IpAddr) -> Result<(), ApiError> {
    let host = single_header(headers, &HOST)?.ok_or_else(|| ApiError::bad_request("the request has no Host header"))?;
    let forbidden = || {
        ApiError::new(
            StatusCode::FORBIDDEN,
            format!("the host \"{host}\" is not this server's: use the address that it printed, or localhost"),
        )
    };
    let authority: Authority = host.parse().map_err(|_| forbidden())?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_own = match name.parse::<IpAddr>() {
        // If the server listens on all addresses, any numeric address can be its own.
        Ok(address) => address == bound || address.is_loopback() || bound.is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    if is_own && authority.as_str().find('@').is_none() { Ok(()) } else { Err(forbidden()) }
}

/// Checks that a request does not come from another page. Browsers send the source in `Origin`.
/// Newer browsers also send `Sec-Fetch-Site`, which covers requests without `Origin`, such as those
/// of images.
///
/// # Errors
/// 403 if the request comes from another origin.
pub(crate) fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let forbidden = |origin: &str| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            format!("requests from {origin} are refused: only this server's own page may send them"),
        )
    };
    if let Some(origin) = single_header(headers, &ORIGIN)? {
        let host = single_header(headers, &HOST)?.unwrap_or_default();
        if !origin.eq_ignore_ascii_case(&format!("http://{host}")) {
            return Err(forbidden(&format!("the origin \"{origin}\"")));
        }
    }
    match single_header(headers, &SEC_FETCH_SITE)? {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(forbidden("another site")),
    }
}

/// Checks that the content type is JSON. HTML forms of other pages can send other content types
/// without a preflight request.
///
/// # Errors
/// 415 if the content type is not JSON.
pub(crate) fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = single_header(headers, &CONTENT_TYPE)?.unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the content type is \"{content_type}\": it must be application/json");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message))
}

/// Returns the value of a header that occurs at most once.
///
/// # Errors
/// 400 if the header occurs twice or is not text.
fn single_header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (value, second) = (values.next(), values.next());
    let text = value.map(|value| value.to_str()).transpose();
    match (text, second) {
        (Ok(text), None) => Ok(text),
        _ => Err(ApiError::bad_request(format!("the header {name} occurs twice or is not text: send it once"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(given: &[(&HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn status(result: Result<(), ApiError>) -> u16 {
        result.map_or_else(|error| error.status.as_u16(), |()| 200)
    }

    #[test]
    fn other_host_names_are_refused() {
        let host = |host: &str, bound: &str| status(check_host(&headers(&[(&HOST, host)]), bound.parse().unwrap()));
        for good in ["127.0.0.1:8008", "localhost:8008", "LOCALHOST", "localhost:9000", "[::1]:8008", "127.0.0.1"] {
            assert_eq!(host(good, "127.0.0.1"), 200, "{good}");
        }
        for bad in
            ["evil.example", "evil.example:8008", "localhost.evil.example", "10.0.0.5:8008", "a@localhost", "", "::1"]
        {
            assert_eq!(host(bad, "127.0.0.1"), 403, "{bad}");
        }
        assert_eq!((host("10.0.0.5:8008", "10.0.0.5"), host("10.0.0.6:8008", "10.0.0.5")), (200, 403));
        assert_eq!((host("10.0.0.5", "0.0.0.0"), host("evil.example", "0.0.0.0")), (200, 403));
        let ours = "127.0.0.1".parse().unwrap();
        assert_eq!(status(check_host(&headers(&[]), ours)), 400);
        let twice = headers(&[(&HOST, "localhost"), (&HOST, "evil.example")]);
        assert_eq!(status(check_host(&twice, ours)), 400);
    }

    #[test]
    fn other_origins_are_refused() {
        let origin = |given: &[(&HeaderName, &str)]| {
            status(check_origin(&headers(&[&[(&HOST, "127.0.0.1:8008")], given].concat())))
        };
        assert_eq!(origin(&[]), 200);
        assert_eq!(origin(&[(&ORIGIN, "http://127.0.0.1:8008")]), 200);
        for other in
            ["http://127.0.0.1:3000", "http://localhost:8008", "https://127.0.0.1:8008", "null", "http://evil.example"]
        {
            assert_eq!(origin(&[(&ORIGIN, other)]), 403, "{other}");
        }
        for (site, want) in [("same-origin", 200), ("none", 200), ("same-site", 403), ("cross-site", 403)] {
            assert_eq!(origin(&[(&SEC_FETCH_SITE, site)]), want, "{site}");
        }
    }

    #[test]
    fn other_content_types_are_refused() {
        let json = |value: &str| status(check_json(&headers(&[(&CONTENT_TYPE, value)])));
        assert_eq!((json("application/json"), json("Application/JSON; charset=utf-8")), (200, 200));
        for other in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
            assert_eq!(json(other), 415, "{other}");
        }
        assert_eq!(status(check_json(&HeaderMap::new())), 415);
    }
}
