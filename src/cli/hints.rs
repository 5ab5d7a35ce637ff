//! What a model says of the model that it was made from: in the front matter of `README.md`
//! (`base_model`), in `config.json` and in `adapter_config.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The most bytes that are read of such a file.
const MOST: u64 = 1 << 20;
/// The keys in JSON.
const KEYS: [&str; 3] = ["base_model_name_or_path", "base_model", "_name_or_path"];

/// The names of models that the model at `path` was made from, in lower case, as far as the files
/// beside it tell.
pub(super) fn names(path: &Path) -> Vec<String> {
    let beside = |name: &str| {
        let mut text = String::new();
        let file = File::open(path.with_file_name(name)).ok()?;
        file.take(MOST).read_to_string(&mut text).ok().map(|_| text)
    };
    let mut names = beside("README.md").map(|text| of_card(&text)).unwrap_or_default();
    for name in ["config.json", "adapter_config.json"] {
        names.extend(beside(name).map(|text| of_json(&text)).unwrap_or_default());
    }
    // The last component is what directories are called.
    let short = |name: String| {
        let name = name.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        name.to_lowercase()
    };
    names.into_iter().map(short).filter(|name| name.len() > 1).collect()
}

/// Whether the path of an archive contains one of these names.
pub(super) fn names_archive(names: &[String], archive: &Path) -> bool {
    let path = archive.to_string_lossy().to_lowercase();
    let is_end = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric());
    names.iter().any(|name| {
        path.match_indices(&**name).any(|(at, _)| {
            is_end(path[..at].chars().next_back()) && is_end(path[at + name.len()..].chars().next())
        })
    })
}

fn of_json(text: &str) -> Vec<String> {
    let Ok(json) = serde_json::from_str::<serde_json::Value>(text) else { return Vec::new() };
    KEYS.iter().filter_map(|key| json.get(key)?.as_str().map(str::to_owned)).collect()
}

/// `base_model: a/b`, or a list of such names below `base_model:`.
fn of_card(text: &str) -> Vec<String> {
    let Some(front) = text.strip_prefix("---") else { return Vec::new() };
    let front = front.split("\n---").next().unwrap_or_default();
    let mut lines = front.lines();
    let clean = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    while let Some(line) = lines.next() {
        let Some(value) = line.strip_prefix("base_model:") else { continue };
        if !value.trim().is_empty() {
            return vec![clean(value)];
        }
        let list = lines.map_while(|line| line.trim_start().strip_prefix("- "));
        return list.map(clean).collect();
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_names_its_base() {
        let one = "---\nlicense: mit\nbase_model: \"org/Base-7B\"\n---\n# Tune\nbase_model: x";
        assert_eq!(of_card(one), ["org/Base-7B"]);
        let list = "---\nbase_model:\n- org/a\n- org/b\ntags: []\n---\n";
        assert_eq!(of_card(list), ["org/a", "org/b"]);
        assert!(of_card("# base_model: x").is_empty() && of_card("---\n---\n").is_empty());
        assert_eq!(of_json(r#"{"_name_or_path": "org/c", "base_model": 7}"#), ["org/c"]);
        let names = ["base-7b".to_owned()];
        let is_named = |path: &str| names_archive(&names, Path::new(path));
        assert!(is_named("/m/Base-7B/model.bsz") && is_named("models--org--Base-7B/x.bsz"));
        assert!(!is_named("/m/base-70b/model.bsz") && !is_named("/m/database-7b/model.bsz"));
    }
}
