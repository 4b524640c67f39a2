//! What differs between two configs: the key as a user spells it, and both values.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// The first key, in alphabetical order, whose value differs between two configs: its path and both
/// values.
pub fn first_difference(was: &Table, now: &Table) -> Option<(String, String, String)> {
    let (was, now) = (leaves(was), leaves(now));
    let mut keys: Vec<&String> = was.keys().chain(now.keys()).collect();
    keys.sort();
    let value = |of: &BTreeMap<String, String>, key: &String| {
        of.get(key).cloned().unwrap_or_else(|| "missing".to_owned())
    };
    keys.into_iter()
        .find(|key| was.get(*key) != now.get(*key))
        .map(|key| (key.clone(), value(&was, key), value(&now, key)))
}

/// Every single value of a config under its path, with the elements of lists under their `name` or
/// index.
fn leaves(table: &Table) -> BTreeMap<String, String> {
    fn collect(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
        match value {
            Value::Table(table) => {
                for (key, value) in table {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    collect(&path, value, into);
                }
            }
            Value::Array(list) if list.iter().any(Value::is_table) => {
                for (index, value) in list.iter().enumerate() {
                    let name = value.get("name").and_then(Value::as_str);
                    let name = name.map_or_else(|| index.to_string(), str::to_owned);
                    collect(&format!("{path}.{name}"), value, into);
                }
            }
            value => {
                into.insert(path.to_owned(), value.to_string());
            }
        }
    }
    let mut into = BTreeMap::new();
    collect("", &Value::Table(table.clone()), &mut into);
    into
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named_by_its_path() {
        let check = |was: &str, now: &str, expected: Option<(&str, &str, &str)>| {
            let found =
                first_difference(&toml::from_str(was).unwrap(), &toml::from_str(now).unwrap());
            let found = found.as_ref().map(|(key, was, now)| (&key[..], &was[..], &now[..]));
            assert_eq!(found, expected);
        };
        check("a = 1\nb = [1, 2]", "b = [1, 2]\na = 1", None);
        check("a = 1\nb.c = 2", "a = 1\nb.c = 3", Some(("b.c", "2", "3")));
        check("a = 1", "", Some(("a", "1", "missing")));
        let pairs = "[[data]]\nname = 'pairs'\nbatch = 1\n";
        check(pairs, &pairs.replace('1', "2"), Some(("data.pairs.batch", "1", "2")));
    }
}
