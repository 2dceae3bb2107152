//! JSON values to CEL values and back. Integers stay exact; what JSON cannot say is refused.

use std::collections::HashMap;

use cel::common::{
    types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt},
    value::Val,
};
use serde_json::{Map, Number, Value};

use super::error::ExprError;

/// Nesting that a computed value may have.
const DEPTH: usize = 100;

/// `value` as CEL sees it; texts are borrowed.
pub(super) fn to_cel<'v>(value: &'v Value) -> Box<dyn Val + 'v> {
    match value {
        Value::Null => Box::new(CelNull),
        Value::Bool(value) => Box::new(CelBool::from(*value)),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Box::new(CelInt::from(value)),
            (None, Some(value)) => Box::new(CelUInt::from(value)),
            (None, None) => Box::new(CelDouble::from(number.as_f64().unwrap_or(f64::NAN))),
        },
        Value::String(text) => Box::new(CelString::from(text.as_str())),
        Value::Array(list) => Box::new(CelList::from(list.iter().map(to_cel).collect::<Vec<_>>())),
        Value::Object(map) => Box::new(mapping(map.iter().map(|(key, value)| (key.as_str(), to_cel(value))))),
    }
}

/// A CEL mapping of `entries`.
pub(super) fn mapping<'v>(entries: impl IntoIterator<Item = (&'v str, Box<dyn Val + 'v>)>) -> CelMap<'v> {
    let entries: HashMap<CelMapKey<'v>, Box<dyn Val + 'v>> =
        entries.into_iter().map(|(key, value)| (CelMapKey::from(key), value)).collect();
    CelMap::from(entries)
}

/// `value` as JSON. Fails for NaN and infinities, for keys that are no texts and for types that JSON lacks.
pub(super) fn to_json(value: &dyn Val) -> Result<Value, ExprError> {
    json(value, 0)
}

fn json(value: &dyn Val, depth: usize) -> Result<Value, ExprError> {
    if depth > DEPTH {
        return Err(ExprError::evaluation(format!("the value is nested deeper than {DEPTH} levels")));
    }
    if let Some(text) = value.downcast_ref::<CelString>() {
        return Ok(Value::String(text.inner().to_owned()));
    }
    if let Some(list) = value.downcast_ref::<CelList>() {
        let list: Result<Vec<Value>, ExprError> =
            list.inner().iter().map(|entry| json(entry.as_ref(), depth + 1)).collect();
        return list.map(Value::Array);
    }
    if let Some(map) = value.downcast_ref::<CelMap>() {
        let mut entries = Vec::with_capacity(map.inner().len());
        for (key, value) in map.inner() {
            let CelMapKey::String(key) = key else {
                return Err(ExprError::mismatch("the keys of a mapping must be strings"));
            };
            entries.push((key.inner().to_owned(), json(value.as_ref(), depth + 1)?));
        }
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        return Ok(Value::Object(entries.into_iter().collect::<Map<_, _>>()));
    }
    if let Some(value) = value.downcast_ref::<CelInt>() {
        return Ok(Value::from(*value.inner()));
    }
    if let Some(value) = value.downcast_ref::<CelUInt>() {
        return Ok(Value::from(*value.inner()));
    }
    if let Some(value) = value.downcast_ref::<CelBool>() {
        return Ok(Value::Bool(*value.inner()));
    }
    if let Some(value) = value.downcast_ref::<CelDouble>() {
        return Number::from_f64(*value.inner())
            .map(Value::Number)
            .ok_or_else(|| ExprError::evaluation("the value is not a finite number (NaN or infinity)"));
    }
    if value.downcast_ref::<CelNull>().is_some() {
        return Ok(Value::Null);
    }
    Err(ExprError::mismatch(format!("a value of type {} cannot be an argument", value.get_type().name())))
}
