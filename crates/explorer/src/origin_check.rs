//! Who may ask: pages of this server and programs of the user's, no other page of the browser.

use std::net::IpAddr;

use hyper::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, StatusCode};

use crate::error::ApiError;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses names that are not this server's. A page whose name is made to point here (DNS
/// rebinding) comes with its own name; an address in numbers cannot be made to, and `localhost`
/// never leaves the machine. The port does not matter: it is another one behind `ssh -L`.
///
/// # Errors
/// 400 without a host, 403 with a wrong one.
pub(crate) fn check_host(headers: &HeaderMap, bound: IpAddr) -> Result<(), ApiError> {
    let host = sole(headers, &HOST)?.ok_or_else(|| ApiError::bad("the request has no Host header: send one"))?;
    let refused = || {
        ApiError::new(
            StatusCode::FORBIDDEN,
            format!("the host \"{host}\" is not this server's: ask for the address that it printed, or localhost"),
        )
    };
    let authority: Authority = host.parse().map_err(|_| refused())?;
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_ours = match name.parse::<IpAddr>() {
        // Listening on every address, it cannot know which of them are its own.
        Ok(address) => address == bound || address.is_loopback() || bound.is_unspecified(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    if is_ours && authority.as_str().find('@').is_none() { Ok(()) } else { Err(refused()) }
}

/// Refuses what another page sends. Browsers say where a request comes from in `Origin`, and newer
/// ones in `Sec-Fetch-Site` too, where a request without `Origin` (of an image) is seen.
///
/// # Errors
/// 403 for another origin.
pub(crate) fn check_origin(headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = |origin: &str| {
        ApiError::new(
            StatusCode::FORBIDDEN,
            format!("requests from {origin} are refused: only this server's own page may ask"),
        )
    };
    if let Some(origin) = sole(headers, &ORIGIN)? {
        let host = sole(headers, &HOST)?.unwrap_or_default();
        if !origin.eq_ignore_ascii_case(&format!("http://{host}")) {
            return Err(refused(&format!("the origin \"{origin}\"")));
        }
    }
    match sole(headers, &SEC_FETCH_SITE)? {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(refused("another site")),
    }
}

/// Refuses bodies that a form of another page could send without being asked by the browser.
///
/// # Errors
/// 415 for anything but JSON.
pub(crate) fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = sole(headers, &CONTENT_TYPE)?.unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let sentence = format!("the content type is \"{content_type}\": it must be application/json");
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, sentence))
}

/// The one value of a header, where there is one.
fn sole<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (value, second) = (values.next(), values.next());
    let text = value.map(|value| value.to_str()).transpose();
    match (text, second) {
        (Ok(text), None) => Ok(text),
        _ => Err(ApiError::bad(format!("the header {name} is given twice or is no text: send it once"))),
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
        result.map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_server_are_hosts() {
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
    fn only_the_page_itself_is_an_origin() {
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
    fn only_json_is_read() {
        let json = |value: &str| status(check_json(&headers(&[(&CONTENT_TYPE, value)])));
        assert_eq!((json("application/json"), json("Application/JSON; charset=utf-8")), (200, 200));
        for other in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""] {
            assert_eq!(json(other), 415, "{other}");
        }
        assert_eq!(status(check_json(&HeaderMap::new())), 415);
    }
}
