//! Small tables of ASCII names, read whatever their case.

/// Longest name in the tables.
const NAME_MAX: usize = 20;

/// A table of names by their length.
pub(crate) struct Names<T> {
    by_length: [Vec<(&'static [u8], T)>; NAME_MAX + 1],
}

impl<T: Copy> Names<T> {
    pub(crate) fn new() -> Self {
        Self { by_length: std::array::from_fn(|_| Vec::new()) }
    }

    /// What is known of a name, `value` at first.
    pub(crate) fn entry(&mut self, name: &'static str, value: T) -> &mut T {
        let names = &mut self.by_length[name.len()];
        let at = names.iter().position(|(found, _)| *found == name.as_bytes());
        let at = at.unwrap_or_else(|| {
            names.push((name.as_bytes(), value));
            names.len() - 1
        });
        &mut names[at].1
    }

    /// What is known of a name, whatever its case.
    pub(crate) fn find(&self, name: &[u8]) -> Option<T> {
        let names = self.by_length.get(name.len())?;
        let first = name.first()?.to_ascii_lowercase();
        let is_it =
            |(found, _): &&(&[u8], T)| found[0] == first && found.eq_ignore_ascii_case(name);
        names.iter().find(is_it).map(|(_, value)| *value)
    }
}
