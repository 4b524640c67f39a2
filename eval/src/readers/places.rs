//! Where pictures and films lie, as task files say it: `val2014/COCO_val2014_{image_id:012}.jpg`.
//!
//! A name in braces stands for what the annotations say; `:012` fills it up with zeros to twelve characters.
//! Several places are parted by ` | `: the first that is there is taken.

use std::path::{Component, Path, PathBuf};

use crate::medium::Medium;
use crate::readers::SplitFiles;

/// A name of a pattern with what the annotations say.
pub(super) type Value<'a> = (&'static str, &'a str);

impl SplitFiles<'_> {
    /// The picture of an entry; none where the task names no `image`.
    pub(super) fn image(&self, values: &[Value<'_>]) -> Result<Option<Medium>, String> {
        let place = self.files.get("image").map(|pattern| place(self.location, pattern, values));
        Ok(place.transpose()?.map(Medium::Image))
    }

    /// The film of an entry, as a folder of frames; none where the task names no `frames`. A pattern with `{start}`
    /// names folders of the part alone; else it is cut out by `span`, in seconds.
    pub(super) fn film(
        &self,
        values: &[Value<'_>],
        span: Option<(f64, f64)>,
    ) -> Result<Option<Medium>, String> {
        let Some(pattern) = self.files.get("frames") else { return Ok(None) };
        let folder = place(self.location, pattern, values)?;
        let span = span.filter(|_| !pattern.contains("{start"));
        if let Some((start, end)) = span
            && !(start >= 0.0 && end >= start && end.is_finite())
        {
            return Err(format!("goes from {start} to {end} seconds, which is no part of a film"));
        }
        Ok(Some(Medium::Frames { folder, span }))
    }
}

/// Most characters that a value is filled up to.
const WIDTH_MAX: usize = 32;

fn place(location: &str, pattern: &str, values: &[Value<'_>]) -> Result<PathBuf, String> {
    let mut first = None;
    let is_only_one = !pattern.contains(" | ");
    for pattern in pattern.split(" | ") {
        let relative = filled(pattern, values)?;
        let is_inside =
            Path::new(&relative).components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside {
            return Err(format!("names `{relative}`, which is not a place in the folder"));
        }
        let path = Path::new(location).join(relative);
        if is_only_one || path.exists() {
            return Ok(path);
        }
        first.get_or_insert(path);
    }
    first.ok_or_else(|| "has no place".to_owned())
}

fn filled(pattern: &str, values: &[Value<'_>]) -> Result<String, String> {
    let mut text = String::new();
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let (name, after) = after
            .split_once('}')
            .ok_or_else(|| format!("`{pattern}` has no `}}` behind a `{{`"))?;
        rest = after;
        let (name, width) = name.split_once(':').unwrap_or((name, ""));
        let value = values.iter().find(|(known, _)| *known == name);
        let (_, value) = value.ok_or_else(|| {
            let known: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
            format!("has no `{name}` for the place `{pattern}`, only {}", known.join(", "))
        })?;
        let width = width.trim_start_matches('0');
        let width: usize = if width.is_empty() {
            0
        } else {
            let parsed = width.parse().ok().filter(|width| *width <= WIDTH_MAX);
            parsed.ok_or_else(|| {
                format!("`{pattern}` has a width that is no number up to {WIDTH_MAX}")
            })?
        };
        (value.len()..width).for_each(|_| text.push('0'));
        text.push_str(value);
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_filled_in_and_padded() {
        let check = |pattern: &str, expected: &str| {
            let values = [("image_id", "42"), ("name", "a b")];
            let found = filled(pattern, &values).unwrap_or_else(|problem| problem);
            assert!(found.contains(expected), "{found}");
        };
        check("val/COCO_{image_id:012}.jpg", "val/COCO_000000000042.jpg");
        check("{name}/{image_id}", "a b/42");
        check("{image_id:1}", "42");
        check("{other}", "has no `other` for the place `{other}`, only image_id, name");
        check("{image_id", "has no `}`");
        check("{image_id:0x}", "a width that is no number");
        check("{image_id:099999999999}", "a width that is no number up to 32");
    }

    #[test]
    fn a_place_stays_in_the_folder_and_the_first_that_is_there_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().to_str().unwrap();
        for hostile in ["../secret", "/etc/passwd", "a/../../b"] {
            let error = place(at, "{image}", &[("image", hostile)]).unwrap_err();
            assert!(error.contains("not a place in the folder"), "{error}");
        }
        let found = |pattern| place(at, pattern, &[("id", "7")]).unwrap();
        assert_eq!(found("a/{id} | b/{id}"), dir.path().join("a/7"));
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/7"), "").unwrap();
        assert_eq!(found("a/{id} | b/{id}"), dir.path().join("b/7"));
    }
}
