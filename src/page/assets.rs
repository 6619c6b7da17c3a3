//! The files that the browser loads. `make ui` builds them from `ui/`; they are compressed, and embedded as they are.

use std::io::Read as _;

use axum::{
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};

/// A file: its path, its type, and its content, compressed with gzip.
struct Asset {
    path: &'static str,
    kind: &'static str,
    gzip: &'static [u8],
}

const ASSETS: [Asset; 5] = [
    Asset {
        path: "/",
        kind: "text/html; charset=utf-8",
        gzip: include_bytes!("../../ui/dist/index.html.gz"),
    },
    Asset {
        path: "/app.js",
        kind: "text/javascript; charset=utf-8",
        gzip: include_bytes!("../../ui/dist/app.js.gz"),
    },
    Asset {
        path: "/app.css",
        kind: "text/css; charset=utf-8",
        gzip: include_bytes!("../../ui/dist/app.css.gz"),
    },
    Asset { path: "/icon.svg", kind: "image/svg+xml", gzip: include_bytes!("../../ui/dist/icon.svg.gz") },
    Asset {
        path: "/NOTICE.txt",
        kind: "text/plain; charset=utf-8",
        gzip: include_bytes!("../../ui/dist/NOTICE.txt.gz"),
    },
];

/// The file at `path`, compressed if the client takes that; 404 if there is none.
#[must_use]
pub fn serve(path: &str, headers: &HeaderMap) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.path == path) else {
        return (StatusCode::NOT_FOUND, "there is no such page\n").into_response();
    };
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static(asset.kind));
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    if accepted.is_some_and(|accepted| accepted.split(',').any(|one| one.trim().starts_with("gzip"))) {
        let encoding = (header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        return ([kind, encoding], asset.gzip).into_response();
    }
    let mut content = Vec::new();
    match flate2::read::GzDecoder::new(asset.gzip).read_to_end(&mut content) {
        Ok(_) => ([kind], content).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "this file of the page is damaged\n").into_response(),
    }
}
