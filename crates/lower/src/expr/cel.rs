//! CEL behind bounds: the text is bounded before it is parsed, its names and functions are checked before it runs,
//! its evaluation is charged (see `cost`), and nothing that the parser or interpreter does can take the process down.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use cel::{
    Context, Env, ExecutionError, IdedExpr, Value as CelValue,
    common::{
        ast::{EntryExpr, Expr, LiteralValue, SourceInfo, operators},
        types::CelMap,
        value::Val,
    },
    objects::ValueType,
};
use serde_json::{Map, Value};

use super::{
    convert::{mapping, to_cel, to_json},
    cost::{self, Account, Spent},
    error::{ExprError, LENGTH},
    path::step_name,
    scan::{is_identifier, string_end},
};
use api::problem::nearest;

/// Deepest nesting of brackets, and of the parsed expression along one operator chain.
const BRACKETS: usize = 64;
const TOKENS: usize = 1000;
const DEPTH: usize = 400;
/// Loops (`map`, `filter`, `all`, …) inside one another.
const LOOPS: usize = 2;
/// Beyond these an expression is parsed and evaluated on a thread with a stack of its own.
const FLAT_BRACKETS: usize = 4;
const FLAT_TOKENS: usize = 60;
const STACK: usize = 256 << 20;

const FUNCTIONS: [&str; 12] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "dyn",
    "range",
];
const OPERATORS: [&str; 19] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
    operators::NOT_STRICTLY_FALSE,
    operators::IN,
];
const ROOTS: [&str; 4] = ["params", "run", "item", "steps"];

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib().with_optional_support(false);
    let declared = cost::declare(&mut env);
    debug_assert!(declared.is_ok(), "{declared:?}");
    Arc::new(env)
});

/// The entries of `params`, `item` or `steps` that an expression names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Names {
    /// Those named, each with its column (of the whole string) where it is first named.
    pub named: BTreeMap<String, usize>,
    /// The mapping is used as a whole, or with a computed key.
    pub all: bool,
}

impl Names {
    pub(super) fn add(&mut self, name: &str, column: usize) {
        self.named.entry(name.to_owned()).or_insert(column);
    }

    /// Nothing of it is used.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && !self.all
    }
}

/// What an expression depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Uses {
    /// Entries of `params`.
    pub params: Names,
    /// Entries of `item`.
    pub item: Names,
    /// Steps whose `.result` is used.
    pub results: Names,
    /// Entries of `run`.
    pub run: Names,
}

/// A checked expression, ready to be evaluated many times.
#[derive(Debug, Clone)]
pub struct Cel {
    expr: Arc<IdedExpr>,
    deep: bool,
}

/// Values of the variables of one evaluation. Only what the expression uses need be there.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// `params`
    pub params: &'a Map<String, Value>,
    /// `run`
    pub run: &'a Map<String, Value>,
    /// `item`
    pub item: &'a Map<String, Value>,
    /// `.result` of steps by name.
    pub results: &'a Map<String, Value>,
    /// Longest list of `range`.
    pub max_items: u32,
    /// What the evaluation is charged to.
    pub account: &'a Account,
}

impl Cel {
    /// Parses and checks `source`; columns in errors count from 1 in `source`.
    pub fn parse(source: &str) -> Result<(Self, Uses), ExprError> {
        let shape = Shape::of(source)?;
        let rewritten = Rewritten::of(source);
        let (expr, info) = isolated(shape.deep, || {
            ENV.compile(&rewritten.text)
                .map(|program| (program.expression().clone(), positions(program.source_info(), program.expression())))
                .map_err(|errors| rewritten.error(source, &errors))
        })??;
        let mut check = Check { source, rewritten: &rewritten, info: &info, uses: Uses::default(), scopes: Vec::new() };
        let (expr, uses) = isolated(shape.deep, || {
            check.expr(&expr, 0).map(|()| (cost::weave(expr), std::mem::take(&mut check.uses)))
        })??;
        Ok((Self { expr: Arc::new(expr), deep: shape.deep }, uses))
    }

    /// Evaluates the expression. Deterministic: equal variables give an equal value.
    pub fn evaluate(&self, uses: &Uses, scope: &Scope<'_>) -> Result<Value, ExprError> {
        isolated(self.deep, || {
            cost::open(scope.max_items, scope.account);
            let mut context = Context::with_env(Arc::clone(&ENV));
            bind(&mut context, "params", scope.params, &uses.params);
            bind(&mut context, "run", scope.run, &uses.run);
            bind(&mut context, "item", scope.item, &uses.item);
            if !uses.results.is_empty() {
                context.add_variable_as_val("steps", Box::new(results(scope.results, &uses.results)));
            }
            let value = CelValue::resolve_val(&self.expr, &context);
            match (cost::close(scope.account), value) {
                (Spent::Items(count), _) => Err(ExprError::Items {
                    message: format!("range makes {count} entries, the limit is {}", scope.max_items),
                }),
                (Spent::Budget, _) => {
                    Err(ExprError::Cost { message: "the expression takes too many steps to evaluate".to_owned() })
                }
                (Spent::Within, Ok(value)) => to_json(&*value),
                (Spent::Within, Err(error)) => Err(failure(&error)),
            }
        })?
    }
}

fn bind<'v>(context: &mut Context<'_, 'v>, variable: &str, values: &'v Map<String, Value>, names: &'v Names) {
    if !names.is_empty() {
        let value: CelMap<'v> = if names.all {
            mapping(values.iter().map(|(key, value)| (key.as_str(), to_cel(value))))
        } else {
            let known = names.named.keys().filter_map(|name| values.get(name).map(|value| (name, value)));
            mapping(known.map(|(key, value)| (key.as_str(), to_cel(value))))
        };
        context.add_variable_as_val(variable, Box::new(value));
    }
}

fn results<'v>(values: &'v Map<String, Value>, names: &'v Names) -> CelMap<'v> {
    let known = names.named.keys().filter_map(|name| values.get(name).map(|value| (name, value)));
    mapping(known.map(|(name, value)| {
        let step: Box<dyn Val + 'v> = Box::new(mapping([("result", to_cel(value))]));
        (name.as_str(), step)
    }))
}

/// Runs `work` so that neither a panic nor a deep recursion of the CEL crate reaches the caller.
fn isolated<T: Send>(deep: bool, work: impl FnOnce() -> T + Send) -> Result<T, ExprError> {
    let guarded = || catch_unwind(AssertUnwindSafe(work)).ok();
    let done = if deep {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("expression".to_owned()).stack_size(STACK);
            thread.spawn_scoped(scope, guarded).ok().and_then(|thread| thread.join().ok()).flatten()
        })
    } else {
        guarded()
    };
    done.ok_or_else(|| ExprError::syntax(1, "the expression cannot be handled; write it in a simpler form"))
}

/// Bounds that hold before the parser sees the text.
struct Shape {
    deep: bool,
}

impl Shape {
    fn of(source: &str) -> Result<Self, ExprError> {
        if source.len() > LENGTH {
            let message = format!("the expression has {} bytes, at most {LENGTH} are allowed", source.len());
            return Err(ExprError::syntax(1, message));
        }
        let bytes = source.as_bytes();
        let column = |at: usize| source.get(..at).map_or(1, |before| before.chars().count() + 1);
        let (mut at, mut depth, mut deepest, mut tokens) = (0, 0usize, 0usize, 0usize);
        while at < bytes.len() {
            tokens += 1;
            match bytes[at] {
                b'"' | b'\'' => {
                    at = string_end(bytes, at)
                        .ok_or_else(|| ExprError::syntax(column(at), "the text is never closed"))?;
                    continue;
                }
                b'(' | b'[' | b'{' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                    if depth > BRACKETS {
                        let message = format!("brackets are nested deeper than {BRACKETS} levels");
                        return Err(ExprError::syntax(column(at), message));
                    }
                }
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                byte if is_identifier(byte) => {
                    while at < bytes.len() && is_identifier(bytes[at]) {
                        at += 1;
                    }
                    continue;
                }
                byte if byte.is_ascii_whitespace() => tokens -= 1,
                _ => {}
            }
            at += 1;
        }
        if tokens > TOKENS {
            let message = format!("the expression has {tokens} names, numbers and signs, at most {TOKENS} are allowed");
            return Err(ExprError::syntax(1, message));
        }
        Ok(Self { deep: deepest > FLAT_BRACKETS || tokens > FLAT_TOKENS })
    }
}

/// The text for the parser: names of steps may contain dashes, so `steps.a-b.result` becomes `steps["a-b"].result`.
struct Rewritten {
    text: String,
    /// Character offset in `text` behind a rewritten name, and how many characters it has grown by so far.
    grown: Vec<(usize, usize)>,
}

impl Rewritten {
    fn of(source: &str) -> Self {
        let bytes = source.as_bytes();
        let mut text = String::with_capacity(source.len() + 16);
        let mut grown = Vec::new();
        let (mut at, mut copied, mut added) = (0, 0, 0);
        while at < bytes.len() {
            match bytes[at] {
                b'"' | b'\'' => at = string_end(bytes, at).unwrap_or(bytes.len()),
                byte if is_identifier(byte) => {
                    let start = at;
                    while at < bytes.len() && is_identifier(bytes[at]) {
                        at += 1;
                    }
                    let selected = source[..start].trim_end().ends_with('.');
                    if &source[start..at] != "steps" || selected {
                        continue;
                    }
                    let dot = at + (source.len() - at - source[at..].trim_start().len());
                    if bytes.get(dot) != Some(&b'.') {
                        continue;
                    }
                    let begin = dot + 1 + (source[dot + 1..].len() - source[dot + 1..].trim_start().len());
                    let name = step_name(&source[begin..]);
                    let after = begin + name.len();
                    if !name.contains('-') || !source[after..].trim_start().starts_with('.') {
                        continue;
                    }
                    text.push_str(&source[copied..dot]);
                    text.push_str("[\"");
                    text.push_str(name);
                    text.push_str("\"]");
                    added += 3 - (begin - dot - 1).min(3);
                    grown.push((text.chars().count(), added));
                    copied = after;
                    at = after;
                }
                _ => at += 1,
            }
        }
        text.push_str(&source[copied..]);
        Self { text, grown }
    }

    /// Column in the source of a character offset in the text.
    fn column(&self, source: &str, offset: usize) -> usize {
        let added = self.grown.iter().rev().find(|(from, _)| *from <= offset).map_or(0, |(_, added)| *added);
        (offset.saturating_sub(added)).min(source.chars().count()) + 1
    }

    fn error(&self, source: &str, errors: &cel::ParseErrors) -> ExprError {
        let Some(first) = errors.errors.first() else { return ExprError::syntax(1, "not an expression") };
        let line = usize::try_from(first.pos.0).unwrap_or(1).max(1);
        let column = usize::try_from(first.pos.1).unwrap_or(1).max(1);
        let before: usize = self.text.split_inclusive('\n').take(line - 1).map(|line| line.chars().count()).sum();
        let message = first.msg.strip_prefix("Syntax error: ").unwrap_or(&first.msg);
        let message = message.split(" expecting ").next().unwrap_or(message);
        let message = message.replace("'<EOF>'", "end of the expression").replace("extraneous input", "unexpected");
        let message =
            message.replace("mismatched input", "unexpected").replace("no viable alternative at input", "unexpected");
        ExprError::syntax(self.column(source, before + column - 1), clean(&message))
    }
}

/// `message` on one line, without control characters, at most 200 characters.
fn clean(message: &str) -> String {
    message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// Where each node was written, by id.
fn positions(info: &SourceInfo, root: &IdedExpr) -> BTreeMap<u64, u32> {
    let mut found = BTreeMap::new();
    let mut open = vec![root];
    while let Some(node) = open.pop() {
        if let Some((start, _)) = info.offset_for(node.id) {
            found.insert(node.id, start);
        }
        open.extend(children(&node.expr));
    }
    found
}

fn children(expr: &Expr) -> Vec<&IdedExpr> {
    match expr {
        Expr::Call(call) => call.target.iter().map(AsRef::as_ref).chain(&call.args).collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Map(map) => map.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Struct(strct) => strct.entries.iter().flat_map(|entry| entry_parts(&entry.expr)).collect(),
        Expr::Comprehension(loops) => {
            vec![&loops.iter_range, &loops.accu_init, &loops.loop_cond, &loops.loop_step, &loops.result]
        }
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
    }
}

fn entry_parts(entry: &EntryExpr) -> Vec<&IdedExpr> {
    match entry {
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
        EntryExpr::StructField(field) => vec![&field.value],
    }
}

/// Checks the names and functions of a parsed expression and notes what it uses.
struct Check<'a> {
    source: &'a str,
    rewritten: &'a Rewritten,
    info: &'a BTreeMap<u64, u32>,
    uses: Uses,
    scopes: Vec<String>,
}

impl Check<'_> {
    /// Where `node` begins: operators are positioned at their sign, so the leftmost operand counts.
    fn column(&self, mut node: &IdedExpr) -> usize {
        loop {
            node = match &node.expr {
                Expr::Select(select) => &select.operand,
                Expr::Call(call) if call.func_name == operators::INDEX && !call.args.is_empty() => &call.args[0],
                _ => break,
            };
        }
        let offset = self.info.get(&node.id).copied().unwrap_or(0) as usize;
        self.rewritten.column(self.source, offset)
    }

    fn expr(&mut self, node: &IdedExpr, depth: usize) -> Result<(), ExprError> {
        if depth > DEPTH {
            return Err(ExprError::syntax(self.column(node), "the expression is nested too deeply"));
        }
        if self.reference(node)? {
            if let Expr::Call(call) = &node.expr {
                return call.args.get(1).map_or(Ok(()), |index| self.expr(index, depth + 1));
            }
            return Ok(());
        }
        match &node.expr {
            Expr::Ident(name) => self.name(node, name),
            Expr::Struct(_) | Expr::Unspecified => Err(ExprError::syntax(
                self.column(node),
                "messages with fields are not supported; write {\"key\": value}",
            )),
            Expr::Literal(LiteralValue::Bytes(_)) => {
                Err(ExprError::syntax(self.column(node), "byte strings are not supported"))
            }
            Expr::Comprehension(loops) => {
                self.expr(&loops.iter_range, depth + 1)?;
                if ROOTS.contains(&loops.iter_var.as_str()) {
                    let message = format!("`{}` is taken; name the variable of the loop otherwise", loops.iter_var);
                    return Err(ExprError::syntax(self.column(node), message));
                }
                if self.scopes.len() >= LOOPS {
                    let message = format!("loops (map, filter, all, exists) are nested deeper than {LOOPS} levels");
                    return Err(ExprError::syntax(self.column(node), message));
                }
                self.scopes.push(loops.iter_var.clone());
                let inside = [&loops.loop_cond, &loops.loop_step, &loops.result];
                let checked = inside.into_iter().try_for_each(|part| self.expr(part, depth + 1));
                self.scopes.pop();
                checked
            }
            other => {
                if let Expr::Call(call) = other {
                    self.function(node, &call.func_name)?;
                }
                children(other).into_iter().try_for_each(|child| self.expr(child, depth + 1))
            }
        }
    }

    fn function(&self, node: &IdedExpr, name: &str) -> Result<(), ExprError> {
        if OPERATORS.contains(&name) || FUNCTIONS.contains(&name) {
            return Ok(());
        }
        let message = match name {
            "flatten" | "compact" => format!("{name}(…) stands alone: $({name}(steps.<name>.output))"),
            "map" | "filter" | "all" | "exists" | "exists_one" => {
                format!("`{name}` takes a variable and an expression, as in list.{name}(x, x > 0)")
            }
            _ => match nearest(name, FUNCTIONS) {
                Some(meant) => format!("unknown function `{name}`; did you mean `{meant}`?"),
                None => format!("unknown function `{name}`; there are {}", FUNCTIONS.join(", ")),
            },
        };
        Err(ExprError::syntax(self.column(node), clean(&message)))
    }

    fn name(&mut self, node: &IdedExpr, name: &str) -> Result<(), ExprError> {
        if name.starts_with('@') || self.scopes.iter().any(|variable| variable == name) {
            return Ok(());
        }
        match name {
            "params" => self.uses.params.all = true,
            "item" => self.uses.item.all = true,
            "run" => self.uses.run.all = true,
            "steps" => return Err(self.wrong_step(node)),
            _ => {
                let message = match nearest(name, ROOTS) {
                    Some(meant) => format!("unknown name `{name}`; did you mean `{meant}`?"),
                    None => format!("unknown name `{name}`; there are {}", ROOTS.join(", ")),
                };
                return Err(ExprError::syntax(self.column(node), clean(&message)));
            }
        }
        Ok(())
    }

    /// Notes `params.x`, `params["x"]` and the like, and `steps.x.result`. False: the node is none of these.
    fn reference(&mut self, node: &IdedExpr) -> Result<bool, ExprError> {
        if let Expr::Select(select) = &node.expr
            && let Some(("steps", step)) = entry(&select.operand)
        {
            if select.field != "result" {
                return Err(self.wrong_step(node));
            }
            let column = self.column(&select.operand);
            self.uses.results.add(step, column);
            return Ok(true);
        }
        let Some((root, name)) = entry(node) else { return Ok(false) };
        if self.scopes.iter().any(|variable| variable == root) {
            return Ok(false);
        }
        let column = self.column(node);
        match root {
            "params" => self.uses.params.add(name, column),
            "item" => self.uses.item.add(name, column),
            "run" => self.uses.run.add(name, column),
            "steps" => return Err(self.wrong_step(node)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn wrong_step(&self, node: &IdedExpr) -> ExprError {
        let message = "of a step, an expression can use steps.<name>.result; steps.<name>.output only stands alone, without \
                       operators";
        ExprError::syntax(self.column(node), message)
    }
}

/// The variable and entry of `variable.entry` or `variable["entry"]`.
fn entry(node: &IdedExpr) -> Option<(&str, &str)> {
    match &node.expr {
        Expr::Select(select) => match &select.operand.expr {
            Expr::Ident(root) => Some((root, &select.field)),
            _ => None,
        },
        Expr::Call(call) if call.func_name == operators::INDEX => match &call.args[..] {
            [
                IdedExpr { expr: Expr::Ident(root), .. },
                IdedExpr { expr: Expr::Literal(LiteralValue::String(key)), .. },
            ] => Some((root, key.inner())),
            _ => None,
        },
        _ => None,
    }
}

/// A message without the values involved, which may be large or none of the log's business.
fn failure(error: &ExecutionError) -> ExprError {
    let kind = |value: &CelValue| match value.type_of() {
        ValueType::Int | ValueType::UInt => "an integer",
        ValueType::Float => "a number",
        ValueType::String => "a string",
        ValueType::Bool => "a boolean",
        ValueType::List => "a list",
        ValueType::Map => "a mapping",
        ValueType::Null => "null",
        _ => "a value of another type",
    };
    match error {
        ExecutionError::NoSuchKey(key) => ExprError::evaluation(clean(&format!("there is no key {key:?}"))),
        ExecutionError::UnsupportedBinaryOperator(operator, left, right) => {
            let message = format!("cannot {operator} {} and {}", kind(left), kind(right));
            ExprError::mismatch(message)
        }
        ExecutionError::ValuesNotComparable(left, right) => {
            ExprError::mismatch(format!("cannot compare {} and {}", kind(left), kind(right)))
        }
        ExecutionError::UnsupportedIndex(index, value) => {
            ExprError::mismatch(format!("cannot index {} with {}", kind(value), kind(index)))
        }
        ExecutionError::UnsupportedKeyType(key) => ExprError::mismatch(format!("{} cannot be a key", kind(key))),
        ExecutionError::IndexOutOfBounds(CelValue::Int(index)) => {
            ExprError::evaluation(format!("there is no index {index} in the list"))
        }
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            ExprError::evaluation("division by zero")
        }
        ExecutionError::Overflow(..) => ExprError::evaluation("the number does not fit 64 bits"),
        ExecutionError::DuplicateKey(_) => ExprError::evaluation("a mapping has the same key twice"),
        ExecutionError::NoSuchOverload(overload) => {
            let name = overload.function().trim_matches(['_', '@']);
            let types = overload.argument_types().join(", ");
            ExprError::mismatch(clean(&format!("`{name}` cannot be applied to {types}")))
        }
        ExecutionError::UnexpectedType { got, want } => {
            ExprError::mismatch(clean(&format!("a value is {got}, it must be {want}")))
        }
        ExecutionError::FunctionError { message, .. } => ExprError::evaluation(clean(message)),
        ExecutionError::UndeclaredReference(name) => {
            ExprError::evaluation(clean(&format!("`{name}` is not known here")))
        }
        _ => ExprError::evaluation("the expression cannot be evaluated"),
    }
}

#[cfg(test)]
#[path = "cel_tests.rs"]
mod tests;
