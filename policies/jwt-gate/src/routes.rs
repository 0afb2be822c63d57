//! Which scope which route needs. What is not listed is closed.

use guest::HttpRequest;

pub(crate) struct Route {
    methods: &'static [&'static str],
    /// Covers itself and what is below it.
    path: &'static str,
    pub(crate) scope: &'static str,
}

const READ: &[&str] = &["GET", "HEAD"];
const WRITE: &[&str] = &["POST", "PUT", "PATCH", "DELETE"];

/// The first that fits decides, so the longer paths come first.
const ROUTES: &[Route] = &[
    route(READ, "/v1/orders/export", "orders:export"),
    route(READ, "/v1/orders", "orders:read"),
    route(WRITE, "/v1/orders", "orders:write"),
    route(READ, "/v1/profile", "profile:read"),
    route(WRITE, "/v1/admin", "admin"),
    route(READ, "/v1/admin", "admin"),
];

pub(crate) fn find(request: &HttpRequest) -> Result<&'static Route, &'static str> {
    if !is_plain(&request.path) {
        return Err("path ambiguous");
    }
    ROUTES
        .iter()
        .find(|route| route.methods.contains(&&*request.method) && request.is_under(route.path))
        .ok_or("no such route")
}

/// False for paths that servers take to mean different things: dots, empty segments, backslashes, parameters, and
/// escapes that stand for one of those or for a character that needs none (`/%61dmin` is `/admin` to some).
fn is_plain(path: &str) -> bool {
    let Some(segments) = path.strip_prefix('/') else {
        return false;
    };
    let segments = segments.strip_suffix('/').unwrap_or(segments);
    segments.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && path.split('%').skip(1).all(is_plain_escape)
        && !path.contains(['\\', ';', '\0', '#', '?'])
}

/// `escape` is what follows a percent sign.
fn is_plain_escape(escape: &str) -> bool {
    let digits = escape.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let Some(code) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
        return false;
    };
    let needless = code.is_ascii_alphanumeric() || b"-._~".contains(&code);
    !needless && !code.is_ascii_control() && !b"/\\;%#?".contains(&code)
}

const fn route(methods: &'static [&'static str], path: &'static str, scope: &'static str) -> Route {
    Route { methods, path, scope }
}
