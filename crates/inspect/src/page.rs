//! The page: files that are part of the program. It loads nothing from elsewhere and runs nothing but its own script.

use http::header::HeaderValue;
use http::{Response, StatusCode};

use crate::api::{Body, whole};

/// Nothing but what comes from here, no script or style within the document, and no frame around it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// The file at a path.
pub(crate) fn asset(path: &str) -> Option<Response<Body>> {
    let (kind, text) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("ui/index.html")),
        "/ui/app.css" => ("text/css; charset=utf-8", include_str!("ui/app.css")),
        "/ui/app.js" => ("text/javascript; charset=utf-8", include_str!("ui/app.js")),
        _ => return None,
    };
    let mut response = whole(StatusCode::OK, kind, text);
    let headers = response.headers_mut();
    headers.insert("content-security-policy", HeaderValue::from_static(POLICY));
    headers.insert("referrer-policy", HeaderValue::from_static("no-referrer"));
    Some(response)
}
