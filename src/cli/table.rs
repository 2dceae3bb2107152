//! Results for people: a text as it is, a list of records as a table, a mapping as one line for each key.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Map, Value};

/// A result as text; what has several lines begins on a line of its own.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(rows) => match records(rows) {
            Some(table) => format!("\n{table}"),
            None => value.to_string(),
        },
        Value::Object(map)
            if map.values().any(|inner| inner.as_array().is_some_and(|rows| records(rows).is_some())) =>
        {
            map.iter().map(|(key, inner)| format!("\n{key}: {}", plain(inner))).collect()
        }
        other => other.to_string(),
    }
}

/// A table, if every row is a mapping of plain values.
fn records(rows: &[Value]) -> Option<Table> {
    let rows: Vec<&Map<String, Value>> = rows.iter().map(Value::as_object).collect::<Option<_>>()?;
    let nested = |value: &Value| value.is_array() || value.is_object();
    if rows.is_empty() || rows.iter().any(|row| row.is_empty() || row.values().any(nested)) {
        return None;
    }
    let mut columns: Vec<&String> = Vec::new();
    for key in rows.iter().flat_map(|row| row.keys()) {
        if !columns.contains(&key) {
            columns.push(key);
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|name| name.as_str()));
    for row in &rows {
        table.add_row(columns.iter().map(|name| row.get(*name).map(cell).unwrap_or_default()));
    }
    for (at, name) in columns.iter().enumerate() {
        let numbers = rows.iter().all(|row| row.get(*name).is_none_or(|value| value.is_number() || value.is_null()));
        if let (true, Some(column)) = (numbers, table.column_mut(at)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    Some(table)
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn records_become_a_table_and_other_values_stay_as_they_are() {
        assert_eq!(plain(&json!(9900)), "9900");
        assert_eq!(plain(&json!("text")), "text");
        assert_eq!(plain(&json!([1, [2]])), "[1,[2]]");
        let table = plain(&json!({"rows": [{"name": "a", "n": 1}, {"name": "bb", "n": 20}], "total": 2}));
        let lines: Vec<&str> = table.lines().map(str::trim_end).collect();
        assert_eq!(lines, ["", "rows:", " name   n", " a      1", " bb    20", "total: 2"]);
    }
}
