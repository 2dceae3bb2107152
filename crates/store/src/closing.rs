//! Results that a run ends with and that are too large for its closing record: JSON text in parts before it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// Parts as they come, as many as a run can end with.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    by: BTreeMap<String, Part>,
    bytes: usize,
    values: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Part {
    text: String,
    /// Parts that have come, and how many there are.
    come: u64,
    count: u64,
}

impl Default for Parts {
    fn default() -> Self {
        Self::within(limits::FINAL_VALUES)
    }
}

impl Parts {
    /// Of which no more than so many values are read.
    pub fn within(values: usize) -> Self {
        Self { by: BTreeMap::new(), bytes: limits::CLOSING_RESULTS, values }
    }

    /// The next part of a result; what is more than a run can end with, or out of order, is left out.
    pub fn add(&mut self, name: String, index: u64, count: u64, text: &str) {
        if index == 0 {
            self.drop(&name);
            self.by.insert(name.clone(), Part { text: String::new(), come: 0, count });
        }
        let bytes = self.bytes;
        let Some(part) = self.by.get_mut(&name) else { return };
        if part.come != index || part.count != count || text.len() > bytes {
            return self.drop(&name);
        }
        part.text.push_str(text);
        part.come += 1;
        self.bytes -= text.len();
    }

    fn drop(&mut self, name: &str) {
        if let Some(part) = self.by.remove(name) {
            self.bytes += part.text.len();
        }
    }

    /// Puts the results into the closing record, each in the place of what says where it is.
    pub fn put_into(self, closing: &mut Map<String, Value>) {
        let Some(Value::Object(results)) = closing.get_mut("results") else { return };
        let mut values = self.values;
        for (name, part) in self.by.into_iter().filter(|(_, part)| part.come == part.count) {
            let Some(left) = values.checked_sub(values_of(&part.text)) else { continue };
            values = left;
            if let (Some(place), Ok(value)) = (results.get_mut(&name), serde_json::from_str(&part.text)) {
                *place = value;
            }
        }
    }
}

/// No fewer values than the JSON text has: what begins or separates them, outside of texts.
fn values_of(json: &str) -> usize {
    let (mut values, mut quoted, mut escaped) = (1, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = quoted,
            b'"' => quoted = !quoted,
            b',' | b':' | b'[' | b'{' if !quoted => values += 1,
            _ => {}
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(parts: Parts) -> Value {
        let mut closing = json!({"results": {"a": "in the journal", "b": 1}}).as_object().cloned().unwrap_or_default();
        parts.put_into(&mut closing);
        closing["results"].clone()
    }

    #[test]
    fn parts_become_the_result_that_they_were_cut_from() {
        let mut parts = Parts::default();
        for (index, text) in ["[1,", "\"\\\",[\"", "]"].into_iter().enumerate() {
            parts.add("a".into(), index as u64, 3, text);
        }
        parts.add("c".into(), 0, 1, "2");
        assert_eq!(read(parts.clone()), json!({"a": [1, "\",["], "b": 1}), "what the record does not name is left out");
        parts.add("a".into(), 0, 1, "7");
        assert_eq!(read(parts.clone())["a"], 7, "another attempt to end the run");
        parts.add("a".into(), 0, 2, "8");
        assert_eq!(read(parts)["a"], "in the journal", "not all of it has come");
    }

    #[test]
    fn no_more_is_kept_than_a_run_ends_with() {
        let mut parts = Parts::default();
        let text = "1".repeat(1 << 20);
        for index in 0..64 {
            parts.add("a".into(), index, 64, &text);
        }
        parts.add("b".into(), 0, 1, "[2]");
        assert_eq!(read(parts), json!({"a": "in the journal", "b": [2]}));

        let mut parts = Parts::within(100);
        parts.add("a".into(), 0, 1, &format!("[{}0]", "0,".repeat(100)));
        parts.add("b".into(), 0, 1, &format!("\"{}\"", ",".repeat(1000)));
        assert_eq!(read(parts), json!({"a": "in the journal", "b": ",".repeat(1000)}), "within a text nothing counts");
    }
}
