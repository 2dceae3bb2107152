//! What can be wrong with an expression, at parse time or when it is evaluated.

use api::reason::Reason;

/// Longest expression, in bytes.
pub const LENGTH: usize = 4096;

/// A refused or failed expression: a stable reason and a message for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExprError {
    /// The text is not an expression, or uses something that does not exist. `column` counts characters from 1 in
    /// the string of the manifest.
    #[error("column {column}: {message}")]
    Syntax {
        /// From 1 on.
        column: usize,
        /// What is wrong.
        message: String,
    },
    /// The expression is right but its evaluation failed, for example a missing key or a division by zero.
    #[error("{message}")]
    Evaluation {
        /// What is wrong.
        message: String,
    },
    /// The value has another type than its place asks for.
    #[error("{message}")]
    Type {
        /// What is wrong.
        message: String,
    },
    /// Evaluation needs more steps or makes larger values than allowed.
    #[error("{message}")]
    Cost {
        /// What is wrong.
        message: String,
    },
    /// A list longer than the limit of items.
    #[error("{message}")]
    Items {
        /// What is wrong.
        message: String,
    },
}

impl ExprError {
    pub(crate) fn syntax(column: usize, message: impl Into<String>) -> Self {
        Self::Syntax { column, message: message.into() }
    }

    /// It could not be evaluated.
    pub fn evaluation(message: impl Into<String>) -> Self {
        Self::Evaluation { message: message.into() }
    }

    pub(crate) fn mismatch(message: impl Into<String>) -> Self {
        Self::Type { message: message.into() }
    }

    /// The stable reason, as in `docs/expressions.md`.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Syntax { .. } | Self::Evaluation { .. } => Reason::InvalidExpression,
            Self::Type { .. } => Reason::TypeMismatch,
            Self::Cost { .. } => Reason::ExpressionTooExpensive,
            Self::Items { .. } => Reason::TooManyItems,
        }
    }

    /// Moves the column of a part to its place in the whole string.
    pub(crate) fn shifted(self, by: usize) -> Self {
        match self {
            Self::Syntax { column, message } => Self::Syntax { column: column + by, message },
            other => other,
        }
    }
}
