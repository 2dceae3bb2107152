//! Lists of the double of the API server in pages, and objects that are large only on their way out.

use serde_json::{Value, json};

use crate::objects;

/// A page of what is in a list, in the order of its paths. Later pages are of the version that the first one had.
pub fn page<'a>(items: impl Iterator<Item = (&'a String, &'a Value)>, query: &str, version: u64) -> Value {
    let limit = objects::parameter(query, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    let token = objects::parameter(query, "continue").filter(|token| !token.is_empty());
    let token = token.as_deref().map(|token| token.split_once(' ').expect("a token of ours"));
    let (version, behind) = token.map_or_else(|| (version.to_string(), ""), |(of, path)| (of.to_owned(), path));
    let mut items = items.filter(|(path, _)| path.as_str() > behind).peekable();
    let mut taken = Vec::new();
    let mut last = String::new();
    while let Some((path, object)) = items.next_if(|_| taken.len() < limit) {
        last.clone_from(path);
        taken.push(object.clone());
    }
    let mut metadata = json!({ "resourceVersion": version });
    if items.peek().is_some() {
        metadata["continue"] = json!(format!("{version} {last}"));
    }
    json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": taken })
}

/// A text of so many bytes in an object, which takes a few in the double.
pub fn text(bytes: usize) -> String {
    format!("<text {bytes}>")
}

/// So many steps in an object, which take no room in the double: a list in place of this text.
pub fn steps(count: usize) -> String {
    format!("<steps {count}>")
}

/// A list of so many zeros in an object.
pub fn zeros(count: usize) -> String {
    format!("<zeros {count}>")
}

/// An answer with what [`text`], [`steps`] and [`zeros`] stand for.
pub fn fill(answer: String) -> String {
    let lines = |bytes: usize| "value = compute(value)  # one line\\n".repeat(bytes / 35);
    let step = |number: usize| format!(r#"{{"name":"s{number}","call":"flow:f","args":[{number}],"tags":["a"]}}"#);
    let list = |count: usize| format!("[{}]", (0..count).map(step).collect::<Vec<_>>().join(","));
    let zeros = |count: usize| format!("[{}]", vec!["0"; count].join(","));
    let answer = replace(answer, "<text ", ">", lines);
    let answer = replace(answer, "\"<steps ", ">\"", list);
    replace(answer, "\"<zeros ", ">\"", zeros)
}

/// Puts what is made of a number in place of each mark with that number.
fn replace(mut answer: String, begin: &str, end: &str, make: impl Fn(usize) -> String) -> String {
    while let Some(start) = answer.find(begin) {
        let rest = &answer[start + begin.len()..];
        let length = rest.find(end).expect("the mark ends");
        let number = rest[..length].parse().expect("a number");
        answer = answer.replace(&format!("{begin}{number}{end}"), &make(number));
    }
    answer
}
