//! Arguments of a step's callable: a list (positional) or a mapping (by keyword).

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, MapAccess, SeqAccess},
};
use serde_json::{Map, Value};

/// Positional or keyword arguments; values are any JSON, with `$(…)` expressions in their texts.
#[derive(Debug, Clone, PartialEq)]
pub enum Args {
    /// `args: [a, b]`
    List(Vec<Value>),
    /// `args: {x: a, y: b}`
    Map(Map<String, Value>),
}

impl Serialize for Args {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::List(list) => list.serialize(serializer),
            Self::Map(map) => map.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Args {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Args;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list (positional arguments) or a mapping (arguments by name)")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Args, A::Error> {
                let mut list = Vec::new();
                while let Some(value) = access.next_element()? {
                    list.push(value);
                }
                Ok(Args::List(list))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Args, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = access.next_entry()? {
                    map.insert(key, value);
                }
                Ok(Args::Map(map))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Args {
    fn schema_name() -> Cow<'static, str> {
        "Args".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-preserve-unknown-fields": true, "format": "args" })
    }

    fn inline_schema() -> bool {
        true
    }
}
