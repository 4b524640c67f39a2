//! The addresses of an image: `src`, `srcset`, `<source>` of a `<picture>`, and the attributes of
//! lazy loaders.

use url::Url;

use crate::dom::Element;
use crate::furniture;
use crate::html::joined;

/// Attributes in which lazy loaders keep the real address, most common first (OBELICS' list).
const LAZY_ATTRIBUTES: [&str; 18] = [
    "data-hi-res-src",
    "data-full-src",
    "data-src-large",
    "data-src",
    "data-original",
    "data-lazy-src",
    "data-lazy",
    "data-img-src",
    "data-src-fg",
    "data-scroll-image",
    "data-lateloadsrc",
    "data-gt-lazy-src",
    "data-original-src",
    "data-url",
    "data-echo",
    "data-lazyload",
    "data-default-src",
    "src2",
];

/// Attributes with a list of addresses for lazy loaders.
const LAZY_SETS: [&str; 2] = ["data-srcset", "data-lazy-srcset"];

/// Most addresses that are tried for one image.
const URLS_MAX: usize = 16;

/// An image of a page.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageNode {
    /// Absolute addresses of the same image, best first, never empty.
    pub urls: Vec<String>,
    /// Text for those who do not see it.
    pub alt: Option<String>,
    /// `width` and `height` of the tag, in CSS pixels.
    pub shown: Option<(u32, u32)>,
    /// How it gets onto the screen.
    pub loading: Loading,
}

/// How an image gets onto the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loading {
    /// By the browser.
    Plain,
    /// By a script, from an attribute of the tag.
    Lazy,
    /// Where scripts do not run: inside `<noscript>`.
    NoScript,
}

/// Reads an `<img>`, or a `<picture>` with everything inside; none where there is no address.
pub(crate) fn read(elements: &[&Element], base: &Url) -> Option<ImageNode> {
    let img = elements.iter().find(|element| element.name() == "img")?;
    let mut urls = Urls { base, urls: Vec::new() };
    let attr = |name| img.attr(name).map(str::trim).filter(|value| !value.is_empty());
    LAZY_SETS.into_iter().filter_map(attr).for_each(|set| urls.push_set(set));
    LAZY_ATTRIBUTES.into_iter().filter_map(attr).for_each(|url| urls.push(url));
    let loading = if urls.urls.is_empty() { Loading::Plain } else { Loading::Lazy };
    for element in elements.iter().filter(|element| element.name() == "source") {
        for name in ["data-srcset", "srcset"] {
            element.attr(name).into_iter().for_each(|set| urls.push_set(set));
        }
    }
    if let Some(set) = attr("srcset") {
        urls.push_set(set);
    }
    // The `src` of a lazy image is its placeholder.
    if let (Loading::Plain, Some(url)) = (loading, attr("src")) {
        urls.push(url);
    }
    let alt = img.attr("alt").map(joined).filter(|alt| !alt.is_empty());
    let side =
        |name| attr(name)?.trim_end_matches("px").parse::<f32>().ok().map(|side| side as u32);
    let shown = side("width").zip(side("height"));
    if urls.urls.first().is_none_or(|url| furniture::is_ornament(img, url)) {
        return None;
    }
    Some(ImageNode { urls: urls.urls, alt, shown, loading })
}

/// The image of a `<figure>` that a script fills: microdata names its address.
pub(crate) fn of_figure(figure: &Element, base: &Url) -> Option<ImageNode> {
    let is_image = |kind: &str| kind.trim_end_matches('/').ends_with("schema.org/ImageObject");
    figure.attr("itemtype").filter(|kind| is_image(kind.trim()))?;
    let mut urls = Urls { base, urls: Vec::new() };
    urls.push(figure.attr("itemid")?.trim());
    let url = urls.urls.first().filter(|url| !furniture::is_ornament(figure, url))?;
    let urls = vec![url.clone()];
    Some(ImageNode { urls, alt: None, shown: None, loading: Loading::Lazy })
}

/// Absolute addresses without repeats.
struct Urls<'a> {
    base: &'a Url,
    urls: Vec<String>,
}

impl Urls<'_> {
    /// Adds an address; data in place of an address and addresses of other schemes are no images.
    fn push(&mut self, url: &str) {
        // Some loaders keep a list of settings in the attribute.
        if url.starts_with(['{', '[']) {
            return;
        }
        let Ok(mut url) = self.base.join(url) else { return };
        url.set_fragment(None);
        let url = match url.scheme() {
            "http" | "https" => String::from(url),
            // Files belong to pages that are files themselves.
            "file" if self.base.scheme() == "file" => String::from(url),
            _ => return,
        };
        if self.urls.len() < URLS_MAX && !self.urls.contains(&url) {
            self.urls.push(url);
        }
    }

    /// Adds the addresses of a `srcset`, largest first.
    fn push_set(&mut self, set: &str) {
        let mut candidates = parse_srcset(set);
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (url, _) in candidates {
            self.push(url);
        }
    }
}

/// Addresses of a `srcset` with their widths or densities. Addresses may hold commas: a comma ends
/// one only at the end of a word.
fn parse_srcset(set: &str) -> Vec<(&str, f32)> {
    let mut candidates = Vec::new();
    let mut rest = set;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if rest.is_empty() {
            return candidates;
        }
        let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
        let (url, after) = rest.split_at(end);
        if url.ends_with(',') {
            candidates.push((url.trim_end_matches(','), 1.0));
            rest = after;
            continue;
        }
        let end = after.find(',').unwrap_or(after.len());
        let descriptor = after[..end].split_whitespace().next().unwrap_or("1x");
        let size = descriptor.trim_end_matches(['w', 'x']).parse().unwrap_or(1.0);
        candidates.push((url, size));
        rest = &after[end..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom::Dom;
    use crate::flat_tree::FlatTree;

    fn image(html: &str) -> Option<ImageNode> {
        let html = Dom::fragment(html);
        let tree = FlatTree::new(&html);
        let elements: Vec<_> = tree.elements().map(|(_, element)| element).collect();
        read(&elements, &Url::parse("https://a.example/b/c.html").unwrap())
    }

    fn check(html: &str, expected: &[&str]) {
        let urls = image(html).map(|image| image.urls).unwrap_or_default();
        assert_eq!(urls, expected, "{html}");
    }

    #[test]
    fn addresses_are_found_wherever_they_are_and_made_absolute() {
        check("<img src='x y.jpg#z'>", &["https://a.example/b/x%20y.jpg"]);
        check("<img src='//c.example/%7Ex.jpg'>", &["https://c.example/%7Ex.jpg"]);
        check("<IMG SRC=/x.jpg>", &["https://a.example/x.jpg"]);
        check("<img src='data:image/gif;base64,R0' data-src=/x.jpg>", &["https://a.example/x.jpg"]);
        check("<img src=/spacer.gif data-original=/x.jpg>", &["https://a.example/x.jpg"]);
        check(
            "<img src=/s.jpg srcset='/s.jpg 1x, /l.jpg 2x'>",
            &["https://a.example/l.jpg", "https://a.example/s.jpg"],
        );
        check(
            "<picture><source srcset=/x.webp><img src=/x.jpg></picture>",
            &["https://a.example/x.webp", "https://a.example/x.jpg"],
        );
        check("<img alt=nothing>", &[]);
        check("<img src='data:image/png;base64,AAAA'>", &[]);
        check("<img src='https://['>", &[]);
    }

    #[test]
    fn srcset_keeps_commas_inside_addresses() {
        let set = "/a,b.jpg 320w, /c.jpg?w=1,2 640w,/d.jpg";
        assert_eq!(
            parse_srcset(set),
            [("/a,b.jpg", 320.0), ("/c.jpg?w=1,2", 640.0), ("/d.jpg", 1.0)]
        );
        assert_eq!(parse_srcset(" , "), []);
    }

    #[test]
    fn alt_text_and_shown_size_are_kept() {
        let image = image("<img src=a.jpg alt=' two\n words ' width=32 height=16.5px>").unwrap();
        assert_eq!((image.alt.as_deref(), image.shown), (Some("two words"), Some((32, 16))));
        assert_eq!(image.loading, Loading::Plain);
    }
}
