//! `results.json` as those who read lm-evaluation-harness's and lmms-eval's files read it.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::models::{error, evaluate};
use crate::world::World;

fn object<'v>(file: &'v Value, key: &str) -> &'v Map<String, Value> {
    file[key].as_object().unwrap_or_else(|| panic!("`{key}` is no object"))
}

/// The rows of the table that both tools print: for each entry of `results` every metric that is no standard
/// error, with its filter, version, shots, value and standard error.
fn table(file: &Value) -> Vec<String> {
    let mut rows = Vec::new();
    for (name, metrics) in object(file, "results") {
        let version = &file["versions"][name];
        let shots = &file["n-shot"][name];
        assert!(!version.is_null() && shots.is_u64(), "{name}: {version} {shots}");
        let metrics = metrics.as_object().unwrap();
        let alias = metrics["alias"].as_str().unwrap();
        for (key, value) in metrics.iter().filter(|(key, _)| *key != "alias") {
            let (metric, filter) = key.split_once(',').unwrap_or((key, ""));
            if metric.ends_with("_stderr") {
                continue;
            }
            let stderr = metrics.get(&format!("{metric}_stderr,{filter}"));
            // They format it as a number wherever it is there.
            assert!(stderr.is_none_or(Value::is_f64), "{name} {key}: {stderr:?}");
            let better = &file["higher_is_better"][name][metric];
            assert!(better.is_null() || better.is_boolean(), "{name} {key}: {better}");
            if stderr.is_some() && value.is_f64() && !metric.contains("_demo_sd") {
                assert!(better.is_boolean(), "{name} {key} goes which way?");
            }
            rows.push(format!("{alias}|{version}|{filter}|{shots}|{metric}|{value}|{stderr:?}"));
        }
    }
    rows
}

#[test]
fn results_have_the_keys_that_other_tools_read() {
    let world = World::new();
    let (run, out) = (world.path("run"), world.path("out"));
    // The last does not fit the model.
    let more = ["--shots", "0,1,11", "--demo-seeds", "0,1", "--controls", "no-image"];
    let output = evaluate(&world, run.to_str().unwrap(), &out, &more);
    assert!(output.status.success(), "{}", error(&output));
    let bytes = std::fs::read(out.join("results.json")).unwrap();
    let file: Value = serde_json::from_slice(&bytes).unwrap();
    let names: BTreeSet<&String> = object(&file, "results").keys().collect();
    for key in ["configs", "versions", "n-shot", "higher_is_better", "n-samples"] {
        assert_eq!(object(&file, key).keys().collect::<BTreeSet<_>>(), names, "{key}");
    }
    let groups = object(&file, "group_subtasks");
    assert_eq!(object(&file, "groups").keys().collect::<Vec<_>>(), ["caption", "label"]);
    let members = groups.values().flat_map(|group| group.as_array().unwrap());
    let members: Vec<&str> = members.map(|name| name.as_str().unwrap()).collect();
    assert_eq!(members.len(), names.len(), "each entry is of one group");
    assert!(members.iter().all(|name| names.contains(&(*name).to_owned())));
    for counts in object(&file, "n-samples").values() {
        assert!(counts["original"].is_u64() && counts["effective"].is_u64());
    }
    assert!(object(&file, "config")["bootstrap_iters"].is_u64());
    let rows = table(&file);
    let has = |part: &str| rows.iter().any(|row| row.contains(part));
    assert!(has(" - caption_1shot_seed1|") && has("|none|1|acc|"), "{rows:#?}");
    assert!(has("|11|cider|null|None"), "what does not fit has no score: {rows:#?}");
    assert!(
        names.contains(&"label_1shot".to_owned())
            && names.contains(&"label_11shot_seed0".to_owned())
    );
    assert!(!names.contains(&"label_11shot".to_owned()), "there is no mean of what does not fit");
    for absent in ["date", "git_hash"] {
        assert_eq!(file.get(absent), None, "the same evaluation gives the same bytes");
    }
}
