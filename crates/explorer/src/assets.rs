//! The files of the page, which are part of the binary. Nothing is read from disk or network.

/// Returns the content type and the text of a file of the page.
pub(crate) fn at(path: &str) -> Option<(&'static str, &'static str)> {
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    Some(match path {
        "/" => ("text/html; charset=utf-8", include_str!("../assets/index.html")),
        "/style.css" => ("text/css; charset=utf-8", include_str!("../assets/style.css")),
        "/icon.svg" => ("image/svg+xml", include_str!("../assets/icon.svg")),
        "/main.js" => (SCRIPT, include_str!("../assets/main.js")),
        "/api.js" => (SCRIPT, include_str!("../assets/api.js")),
        "/state.js" => (SCRIPT, include_str!("../assets/state.js")),
        "/elements.js" => (SCRIPT, include_str!("../assets/elements.js")),
        "/cloud.js" => (SCRIPT, include_str!("../assets/cloud.js")),
        "/heatmap.js" => (SCRIPT, include_str!("../assets/heatmap.js")),
        "/text.js" => (SCRIPT, include_str!("../assets/text.js")),
        "/words.js" => (SCRIPT, include_str!("../assets/words.js")),
        "/sentence.js" => (SCRIPT, include_str!("../assets/sentence.js")),
        "/edit.js" => (SCRIPT, include_str!("../assets/edit.js")),
        "/generate.js" => (SCRIPT, include_str!("../assets/generate.js")),
        _ => return None,
    })
}
