//! `--set key.path=value`: changes one value of a config before it is checked.

use toml::{Table, Value};

/// One parsed `--set`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// As given, for messages.
    pub given: String,
    path: Vec<String>,
    value: Value,
}

impl std::str::FromStr for Override {
    type Err = String;

    /// Parses `key.path=value`, with the value typed as TOML types it: `0.1`, `"text"`, `[1, 2]`,
    /// `{ a = 1 }`.
    fn from_str(given: &str) -> Result<Self, String> {
        let (path, value) = given.split_once('=').ok_or("expected key.path=value")?;
        let path: Vec<String> = path.trim().split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err("expected key.path=value, found an empty key".to_owned());
        }
        let value = toml::from_str::<Table>(&format!("value = {value}"))
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"))
            .ok_or("the value is not TOML (texts stand in double quotes)")?;
        Ok(Self { given: given.to_owned(), path, value })
    }
}

impl Override {
    /// The change of the value at `key.path`.
    pub fn new(key: &str, value: Value) -> Self {
        let given = format!("{key}={value}");
        Self { given, path: key.split('.').map(str::to_owned).collect(), value }
    }

    /// Puts the value in its place. Elements of a list are named by their `name` or their index
    /// from 0.
    ///
    /// # Errors
    /// When a part of the path leads into something that is neither a table nor a list with that
    /// element.
    pub fn apply(&self, config: &mut Table) -> Result<(), String> {
        let mut root = Value::Table(std::mem::take(config));
        let result = set(&mut root, &self.path, &self.value);
        if let Value::Table(table) = root {
            *config = table;
        }
        result
    }
}

fn set(place: &mut Value, path: &[String], value: &Value) -> Result<(), String> {
    let Some((key, rest)) = path.split_first() else {
        *place = value.clone();
        return Ok(());
    };
    let child = match place {
        Value::Table(table) => {
            table.entry(key.clone()).or_insert_with(|| Value::Table(Table::new()))
        }
        Value::Array(list) => {
            element(list, key).ok_or_else(|| format!("no element of the list is `{key}`"))?
        }
        _ => return Err(format!("`{key}` is looked for in a single value")),
    };
    set(child, rest, value)
}

fn element<'list>(list: &'list mut [Value], key: &str) -> Option<&'list mut Value> {
    let is_named = |value: &Value| value.get("name").and_then(Value::as_str) == Some(key);
    let index = list.iter().position(is_named).or_else(|| key.parse().ok())?;
    list.get_mut(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "steps = 1\n[optimizer]\nlr = 0.1\n[[data]]\nname = 'pairs'\nbatch = 2\n";

    fn check(given: &str, expected: Result<&str, &str>) {
        let mut config: Table = toml::from_str(CONFIG).unwrap();
        let result = given.parse::<Override>().and_then(|change| change.apply(&mut config));
        match (result, expected) {
            (Ok(()), Ok(line)) => {
                let text = config.to_string();
                assert!(text.lines().any(|found| found == line), "{given}: no {line} in {text}");
            }
            (Err(message), Err(part)) => assert!(message.contains(part), "{given}: {message}"),
            (result, _) => panic!("{given}: {result:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn values_are_typed_by_toml_and_lists_are_reached_by_name_or_index() {
        check("steps=7", Ok("steps = 7"));
        check("optimizer.lr = 1e-3", Ok("lr = 0.001"));
        check("optimizer.schedule=\"linear\"", Ok("schedule = \"linear\""));
        check("data.pairs.batch=5", Ok("batch = 5"));
        check("data.0.batch=6", Ok("batch = 6"));
        check("tokenizer.train.vocabulary=9", Ok("vocabulary = 9"));
    }

    #[test]
    fn misuse_is_explained() {
        check("steps", Err("expected key.path=value"));
        check("a..b=1", Err("empty key"));
        check("optimizer.schedule=linear", Err("double quotes"));
        check("steps=1\nlr=2", Err("not TOML"));
        check("steps.lr=2", Err("single value"));
        check("data.clips.batch=2", Err("no element of the list is `clips`"));
        check("data.3.batch=2", Err("no element of the list is `3`"));
    }
}
