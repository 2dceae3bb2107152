//! Kubernetes quantities: `2`, `500m`, `8Gi`.

use std::{borrow::Cow, fmt, str::FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Text form: a number, not negative, with a decimal or binary suffix.
pub const QUANTITY_PATTERN: &str = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$";

const SUFFIXES: [(&str, f64); 14] = [
    ("", 1.0),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

/// An amount of a resource, kept as the user wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Quantity {
    text: String,
}

impl Quantity {
    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The amount in units (bytes, cores, pieces).
    pub fn amount(&self) -> f64 {
        amount(&self.text).unwrap_or(0.0)
    }
}

/// Why a text is not a quantity; reads after the text itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Below zero.
    #[error("is negative")]
    Negative,
    /// Not a number with a suffix.
    #[error(
        "is not a quantity; write a number with one of m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, for example 500m or 8Gi"
    )]
    Form,
    /// Beyond what Kubernetes can hold.
    #[error("is too large")]
    TooLarge,
}

fn amount(text: &str) -> Result<f64, QuantityError> {
    if text.starts_with('-') {
        return Err(QuantityError::Negative);
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() && fraction.len() <= 9 && !fraction.contains('.') => {
            (whole, fraction)
        }
        Some(_) => return Err(QuantityError::Form),
        None => (number, "0"),
    };
    if whole.is_empty() || whole.len() > 15 {
        return Err(if whole.is_empty() { QuantityError::Form } else { QuantityError::TooLarge });
    }
    let (_, factor) = SUFFIXES.iter().find(|(name, _)| *name == suffix).ok_or(QuantityError::Form)?;
    let value = format!("{whole}.{fraction}").parse::<f64>().map_err(|_| QuantityError::Form)? * factor;
    if value >= 9.2e18 { Err(QuantityError::TooLarge) } else { Ok(value) }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        amount(text).map(|_| Self { text: text.to_owned() })
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number or a quantity such as 500m or 8Gi")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                text.parse().map_err(|error| E::custom(format_args!("{text:?} {error}")))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": QUANTITY_PATTERN, "maxLength": 32 })
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kept_as_written_and_measured() {
        for (text, value) in [("2", 2.0), ("500m", 0.5), ("1.5", 1.5), ("8Gi", 8_589_934_592.0), ("0", 0.0)] {
            let quantity: Quantity = text.parse().unwrap();
            assert_eq!((quantity.as_str(), quantity.amount()), (text, value));
        }
        assert_eq!(serde_json::from_str::<Quantity>("2").unwrap().as_str(), "2");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for (text, error) in [
            ("1.5Gi1", QuantityError::Form),
            ("-1", QuantityError::Negative),
            ("1e30", QuantityError::Form),
            ("9999E", QuantityError::TooLarge),
            ("9999999999999999", QuantityError::TooLarge),
            ("", QuantityError::Form),
            (".5", QuantityError::Form),
            ("1.", QuantityError::Form),
            ("8gb", QuantityError::Form),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }
}
