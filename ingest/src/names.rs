//! Small tables of ASCII names, read whatever their case.

/// Longest name in the tables.
const NAME_MAX: usize = 20;

/// A table of names by their length.
pub(crate) struct Names<T> {
    by_length: [Vec<Entry<T>>; NAME_MAX + 1],
}

struct Entry<T> {
    /// First byte of the name: most other names differ in it.
    first: u8,
    name: &'static [u8],
    value: T,
}

impl<T: Copy> Names<T> {
    pub(crate) fn new() -> Self {
        Self { by_length: std::array::from_fn(|_| Vec::new()) }
    }

    /// What is known of a name, `value` at first.
    pub(crate) fn entry(&mut self, name: &'static str, value: T) -> &mut T {
        let names = &mut self.by_length[name.len()];
        let name = name.as_bytes();
        let at = names.iter().position(|entry| entry.name == name);
        let at = at.unwrap_or_else(|| {
            names.push(Entry { first: name[0], name, value });
            names.len() - 1
        });
        &mut names[at].value
    }

    /// What is known of a name, whatever its case.
    pub(crate) fn find(&self, name: &[u8]) -> Option<T> {
        let names = self.by_length.get(name.len())?;
        let first = name.first()?.to_ascii_lowercase();
        let is_it =
            |entry: &&Entry<T>| entry.first == first && entry.name.eq_ignore_ascii_case(name);
        names.iter().find(is_it).map(|entry| entry.value)
    }
}
