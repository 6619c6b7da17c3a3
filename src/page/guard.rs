//! Which requests are answered: none that another site's page can cause.
//!
//! The page is reached over loopback, and a browser on this machine shows other sites as well. Against those:
//!
//! - `Host` is an IP address or `localhost`. A name that another site's owner makes point to 127.0.0.1 is neither, so
//!   their page cannot become this origin (DNS rebinding).
//! - `Origin` and `Sec-Fetch-Site`, where a browser sends them, name this origin.
//! - Every request for objects carries a token in a header, which no form, image or link can send, and another site's
//!   script only after this server permits it. It permits nothing to other origins.
//! - The token is in no cookie, since cookies are shared by all ports of a host.
//!
//! The token is new at each start.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

/// What scripts, styles and requests the page may use: its own files, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                      img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The headers of every response.
const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The secret that a request must carry.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// A new one: 256 random bits.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn new() -> std::io::Result<Self> {
        use std::io::Read as _;
        let mut bytes = [0; 32];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(BASE64URL_NOPAD.encode(&bytes).into()))
    }

    /// Its text, for the address that a person opens.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    /// Whether `text` is the token. Digests are compared, so that the time it takes tells nothing about the token.
    fn is(&self, text: &str) -> bool {
        Sha256::digest(text.as_bytes()) == Sha256::digest(self.0.as_bytes())
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// What a request has to show.
#[derive(Clone, Debug)]
pub struct Guard {
    /// The token for everything below `/api/`; `None` if whoever can connect may read.
    pub token: Option<Token>,
}

/// Answers a request only if it was sent to an address or `localhost`. A browser sends the name that it was told to open,
/// so a site whose owner makes its name point to this machine reads nothing.
pub async fn check_host(request: Request<Body>, next: Next) -> Response {
    match strange_host(request.headers()) {
        None => next.run(request).await,
        Some(refusal) => refusal.into_response(),
    }
}

fn strange_host(headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let host = text(headers, &header::HOST).unwrap_or_default();
    (!is_address(host)).then_some((
        StatusCode::MISDIRECTED_REQUEST,
        "ask for this by an address: that of the node, 127.0.0.1 or localhost\n",
    ))
}

/// Answers a request only if it comes from the page, a program of this machine that has the token, or a person.
pub async fn check(State(guard): State<Guard>, request: Request<Body>, next: Next) -> Response {
    let mut response = match refuse(&guard, &request) {
        None => next.run(request).await,
        Some((status, text)) => (status, text).into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn refuse(guard: &Guard, request: &Request<Body>) -> Option<(StatusCode, &'static str)> {
    let headers = request.headers();
    if let Some(refusal) = strange_host(headers) {
        return Some(refusal);
    }
    let host = text(headers, &header::HOST).unwrap_or_default();
    if let Some(origin) = text(headers, &header::ORIGIN)
        && origin.strip_prefix("http://") != Some(host)
    {
        return Some((StatusCode::FORBIDDEN, "this request comes from another site's page\n"));
    }
    if !request.uri().path().starts_with("/api/") {
        return None;
    }
    let site = text(headers, &HeaderName::from_static("sec-fetch-site"));
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Some((StatusCode::FORBIDDEN, "this request comes from another site's page\n"));
    }
    let token = guard.token.as_ref()?;
    let given = text(headers, &header::AUTHORIZATION).and_then(|value| value.strip_prefix("Bearer "));
    if given.is_some_and(|given| token.is(given)) {
        return None;
    }
    Some((
        StatusCode::UNAUTHORIZED,
        "no valid token: open the address that towpath ui printed when it started\n",
    ))
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// Whether `host` is `localhost` or an IP address, with or without a port.
fn is_address(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => {
                (address, rest.strip_prefix(':').unwrap_or(if rest.is_empty() { "0" } else { "?" }))
            }
            None => return false,
        },
        None => host.split_once(':').unwrap_or((host, "0")),
    };
    port.parse::<u16>().is_ok() && (name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(token: Option<&Token>, path: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let guard = Guard { token: token.cloned() };
        refuse(&guard, &request.body(Body::empty()).unwrap()).map(|(status, _)| status.as_u16())
    }

    #[test]
    fn host_must_be_an_address_or_localhost() {
        for host in ["127.0.0.1:9587", "localhost:9587", "LOCALHOST", "[::1]:9587", "[::1]", "10.0.0.1"] {
            assert_eq!(refused(None, "/", &[("host", host)]), None, "{host}");
        }
        for host in [
            "evil.example:9587",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "[::1",
            "127.0.0.1:x",
        ] {
            assert_eq!(refused(None, "/", &[("host", host)]), Some(421), "{host}");
        }
        assert_eq!(refused(None, "/", &[]), Some(421));
    }

    #[test]
    fn request_of_another_origin_is_refused_even_with_the_token() {
        let token = Token::new().unwrap();
        let bearer = format!("Bearer {}", token.text());
        let ask = |more: &[(&str, &str)]| {
            let mut headers = vec![("host", "127.0.0.1:1"), ("authorization", &bearer)];
            headers.extend(more);
            refused(Some(&token), "/api/v1/graph", &headers)
        };
        assert_eq!(ask(&[]), None);
        assert_eq!(ask(&[("origin", "http://127.0.0.1:1"), ("sec-fetch-site", "same-origin")]), None);
        assert_eq!(ask(&[("origin", "http://127.0.0.1:2")]), Some(403));
        assert_eq!(ask(&[("origin", "https://127.0.0.1:1")]), Some(403));
        assert_eq!(ask(&[("origin", "null")]), Some(403));
        assert_eq!(ask(&[("origin", "http://evil.example")]), Some(403));
        assert_eq!(ask(&[("sec-fetch-site", "cross-site")]), Some(403));
        assert_eq!(ask(&[("sec-fetch-site", "same-site")]), Some(403));
    }

    #[test]
    fn objects_need_the_token_of_this_start_and_the_page_itself_does_not() {
        let (token, other) = (Token::new().unwrap(), Token::new().unwrap());
        let ask = |path: &str, value: &str| {
            refused(Some(&token), path, &[("host", "localhost"), ("authorization", value)])
        };
        assert_eq!(ask("/", "no"), None);
        assert_eq!(ask("/api/v1/graph", &format!("Bearer {}", token.text())), None);
        assert_eq!(ask("/api/v1/graph", &format!("Bearer {}", other.text())), Some(401));
        assert_eq!(ask("/api/v1/graph", token.text()), Some(401));
        assert_eq!(ask("/api/v1/graph", "Bearer "), Some(401));
        assert_eq!(refused(Some(&token), "/api/v1/graph", &[("host", "localhost")]), Some(401));
    }
}
