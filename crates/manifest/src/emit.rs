//! JSON → YAML text that reads back as the same value, for readers of YAML 1.1 and of 1.2.

use serde_json::Value;

/// Longer lines than any are never folded.
const NEVER: usize = usize::MAX;

/// One YAML document, ending with a line break, without `---`.
pub fn to_yaml(value: &Value) -> String {
    let options = serde_saphyr::ser_options! { folded_wrap_chars: NEVER };
    // JSON is YAML, too.
    serde_saphyr::to_string_with_options(value, options).unwrap_or_else(|_| format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::yaml::documents;

    #[test]
    fn what_is_written_reads_back_the_same() {
        let value = json!({
            "plain": "a b", "traps": ["no", "0777", "1e3", "~", "", " x", "x ", "a: b", "a #b", "- a", "@a", "é", "\u{0}", "a\tb", "y", "12:30", "$(x)", "{a}", "a:", "2026-01-01", "\u{2028}", "'", "\"", "<<"],
            "block": "def f(x):\n  return x\n\nz", "block1": "a\nb\n", "block2": "a\nb\n\n", "odd": "a \nb", "lead": " a\nb", "nl": "\n",
            "empty": {"a": {}, "b": [], "c": null}, "numbers": [1, -2, 0.5, 1e30, u64::MAX], "no": true,
            "nested": [[1, [2]], [{"a": [{"b": "c\nd"}], "e": {"f": 1}}], {"x": []}]
        });
        let text = to_yaml(&value);
        let documents = documents(&text);
        assert_eq!(documents.len(), 1, "{text}");
        assert_eq!(documents[0].root.as_ref().unwrap().to_json(), value, "{text}");
        for scalar in [json!("x"), json!([]), json!(null), json!(["a\nb"]), json!("a\nb\n")] {
            assert_eq!(self::documents(&to_yaml(&scalar))[0].root.as_ref().unwrap().to_json(), scalar);
        }
    }
}
