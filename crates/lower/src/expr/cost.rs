//! Bounds on evaluation. Every value that an expression touches or makes is charged by its size against a budget, by
//! calls that are woven into the parsed expression under names that cannot be written (`@cost`, `@each`). Since CEL has
//! no loops but those over values, this bounds time and memory together.

use std::{
    cell::Cell,
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use cel::{
    Env, ExecutionError, IdedExpr,
    common::{
        ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, operators},
        types::{self, CelBool, CelInt, CelList, CelMap, CelString, CelUInt},
        value::{CowVal, Val},
    },
};

/// Units of one evaluation: one per scalar, entry or 16 bytes of text touched.
pub(super) const BUDGET: u64 = 2_000_000;
/// Units of all evaluations of one account.
const ACCOUNT: u64 = 4 * BUDGET;
/// Largest program of a pattern in `matches`.
const PATTERN_BYTES: usize = 1 << 18;
/// Units of one compiled pattern.
const PATTERN_COST: u64 = 20_000;

const COST: &str = "@cost";
const EACH: &str = "@each";

thread_local! {
    static OPENED: Cell<u64> = const { Cell::new(0) };
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static SPENT: Cell<bool> = const { Cell::new(false) };
    static ITEMS: Cell<u64> = const { Cell::new(0) };
    static TOO_MANY: Cell<Option<u64>> = const { Cell::new(None) };
    static PATTERNS: std::cell::RefCell<HashMap<String, regex::Regex>> = std::cell::RefCell::new(HashMap::new());
}

/// How an evaluation ended besides its value.
pub(super) enum Spent {
    Within,
    Budget,
    /// `range` was asked for so many entries.
    Items(u64),
}

/// Units that several evaluations share, for example those of all steps of a pipeline.
#[derive(Debug)]
pub struct Account(AtomicU64);

impl Default for Account {
    fn default() -> Self {
        Self::of(ACCOUNT)
    }
}

impl Account {
    /// An account of so many units.
    pub fn of(units: u64) -> Self {
        Self(AtomicU64::new(units))
    }

    fn take(&self, units: u64) {
        let left = self.0.load(Ordering::Relaxed);
        self.0.store(left.saturating_sub(units), Ordering::Relaxed);
    }
}

/// Begins an evaluation on this thread.
pub(super) fn open(max_items: u32, account: &Account) {
    LEFT.set(account.0.load(Ordering::Relaxed).min(BUDGET));
    OPENED.set(LEFT.get());
    SPENT.set(false);
    ITEMS.set(u64::from(max_items));
    TOO_MANY.set(None);
}

/// Ends it. An error inside `||` or `all` can be absorbed by CEL's rules, so the account must be asked.
pub(super) fn close(account: &Account) -> Spent {
    account.take(1 + OPENED.get() - LEFT.get());
    PATTERNS.with_borrow_mut(HashMap::clear);
    match (TOO_MANY.get(), SPENT.get()) {
        (Some(count), _) => Spent::Items(count),
        (None, true) => Spent::Budget,
        (None, false) => Spent::Within,
    }
}

/// Declares the functions of ours.
pub(super) fn declare(env: &mut Env) -> Result<(), cel::DeclarationError> {
    let any = || types::DYN_TYPE;
    env.add_overload(COST, COST, vec![any()], cost)?;
    env.add_overload(EACH, EACH, vec![any()], each)?;
    env.add_overload("range", "range_to", vec![any()], range)?;
    env.add_overload("range", "range_from_to", vec![any(), any()], range)?;
    env.add_overload("range", "range_step", vec![any(), any(), any()], range)?;
    env.add_overload("matches", "matches_pattern", vec![types::STRING_TYPE, types::STRING_TYPE], matches)?;
    env.add_member_overload("matches", "string_matches_pattern", types::STRING_TYPE, vec![types::STRING_TYPE], matches)
}

/// Weaves the charges into `expr`.
pub(super) fn weave(expr: IdedExpr) -> IdedExpr {
    let IdedExpr { id, expr } = expr;
    let woven = match expr {
        Expr::Literal(_) | Expr::Unspecified => return IdedExpr { id, expr },
        Expr::Ident(name) if name.starts_with('@') => return IdedExpr { id, expr: Expr::Ident(name) },
        Expr::Ident(_) | Expr::Select(_) => place(IdedExpr { id, expr }),
        Expr::Call(call) => match call.func_name.as_str() {
            operators::CONDITIONAL
            | operators::LOGICAL_AND
            | operators::LOGICAL_OR
            | operators::LOGICAL_NOT
            | operators::NOT_STRICTLY_FALSE => return IdedExpr { id, expr: Expr::Call(weave_call(call)) },
            // the growing list of `map` and `filter`: its entries are charged, and the interpreter knows this shape
            operators::ADD if matches!(&call.args[..], [first, _] if is_hidden(first)) => {
                return IdedExpr { id, expr: Expr::Call(weave_call(call)) };
            }
            operators::INDEX => place(IdedExpr { id, expr: Expr::Call(call) }),
            _ => IdedExpr { id, expr: Expr::Call(weave_call(call)) },
        },
        Expr::List(mut list) => {
            // its entries are charged; the interpreter must see a list behind the `+` of `map` and `filter`
            list.elements = list.elements.into_iter().map(weave).collect();
            return IdedExpr { id, expr: Expr::List(list) };
        }
        Expr::Map(mut map) => {
            for entry in &mut map.entries {
                match &mut entry.expr {
                    EntryExpr::MapEntry(entry) => {
                        entry.key = weave(std::mem::take(&mut entry.key));
                        entry.value = weave(std::mem::take(&mut entry.value));
                    }
                    EntryExpr::StructField(field) => field.value = weave(std::mem::take(&mut field.value)),
                }
            }
            IdedExpr { id, expr: Expr::Map(map) }
        }
        Expr::Struct(_) => IdedExpr { id, expr },
        Expr::Comprehension(comprehension) => {
            let ComprehensionExpr { iter_range, loop_cond, loop_step, result, .. } = *comprehension;
            let loop_cond = match loop_cond.expr {
                Expr::Literal(_) => loop_cond,
                _ => charged(loop_cond, COST),
            };
            let woven = ComprehensionExpr {
                iter_range: each_of(weave(iter_range)),
                loop_cond,
                loop_step: weave(loop_step),
                result,
                iter_var: comprehension.iter_var,
                iter_var2: comprehension.iter_var2,
                accu_var: comprehension.accu_var,
                accu_init: comprehension.accu_init,
            };
            IdedExpr { id, expr: Expr::Comprehension(Box::new(woven)) }
        }
    };
    charged(woven, COST)
}

/// A value's place (`a.b[c]`): reading it costs nothing, only what is found there.
fn place(expr: IdedExpr) -> IdedExpr {
    let IdedExpr { id, expr } = expr;
    let expr = match expr {
        Expr::Select(mut select) => {
            *select.operand = place(std::mem::take(&mut *select.operand));
            Expr::Select(select)
        }
        Expr::Call(mut call) if call.func_name == operators::INDEX && call.args.len() == 2 => {
            let index = call.args.pop().map(weave);
            let base = call.args.pop().map(place);
            call.args.extend(base.into_iter().chain(index));
            Expr::Call(call)
        }
        Expr::Ident(_) => expr,
        other => return weave(IdedExpr { id, expr: other }),
    };
    IdedExpr { id, expr }
}

fn weave_call(mut call: CallExpr) -> CallExpr {
    call.args = call.args.into_iter().map(weave).collect();
    call.target = call.target.map(|target| Box::new(weave(*target)));
    call
}

fn is_hidden(expr: &IdedExpr) -> bool {
    matches!(&expr.expr, Expr::Ident(name) if name.starts_with('@'))
}

fn charged(expr: IdedExpr, function: &str) -> IdedExpr {
    let id = expr.id;
    IdedExpr { id, expr: Expr::Call(CallExpr { func_name: function.to_owned(), target: None, args: vec![expr] }) }
}

/// What a loop goes over; charged once.
fn each_of(mut expr: IdedExpr) -> IdedExpr {
    match &mut expr.expr {
        Expr::Call(call) if call.func_name == COST => {
            call.func_name = EACH.to_owned();
            expr
        }
        _ => charged(expr, EACH),
    }
}

fn charge(units: u64) -> Result<(), ExecutionError> {
    match LEFT.get().checked_sub(units) {
        Some(left) if !SPENT.get() => {
            LEFT.set(left);
            Ok(())
        }
        _ => {
            SPENT.set(true);
            LEFT.set(0);
            Err(failure("@cost", "budget spent"))
        }
    }
}

fn failure(function: &str, message: impl Into<String>) -> ExecutionError {
    ExecutionError::FunctionError { function: function.to_owned(), message: message.into() }
}

/// Size of `value` in units, counted no further than `limit`.
fn size(value: &dyn Val, limit: u64) -> u64 {
    if let Some(text) = value.downcast_ref::<CelString>() {
        return 1 + text.inner().len() as u64 / 16;
    }
    let mut units = 1u64;
    if let Some(list) = value.downcast_ref::<CelList>() {
        for entry in list.inner() {
            if units > limit {
                break;
            }
            units += size(entry.as_ref(), limit - units);
        }
    } else if let Some(map) = value.downcast_ref::<CelMap>() {
        for (key, entry) in map.inner() {
            if units > limit {
                break;
            }
            units += size(key.inner(), limit - units);
            units += size(entry.as_ref(), limit.saturating_sub(units));
        }
    }
    units
}

fn cost<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = args.pop().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    charge(size(value.as_ref(), LEFT.get()))?;
    Ok(value)
}

/// What a loop goes over: charged, and a mapping as the list of its keys in order, so that the same expression gives
/// the same list every time.
fn each<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let value = cost(args)?;
    let Some(map) = value.downcast_ref::<CelMap>() else { return Ok(value) };
    let mut keys: Vec<_> = map.inner().keys().collect();
    keys.sort_unstable();
    let keys: Vec<Box<dyn Val + 'v>> = keys.into_iter().map(|key| key.inner().clone_as_boxed()).collect();
    Ok(CowVal::owned(CelList::from(keys)))
}

fn range<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let mut numbers = Vec::with_capacity(3);
    for arg in &args {
        numbers.push(whole(arg.as_ref())?);
    }
    let (start, end, step) = match numbers[..] {
        [end] => (0, end, 1),
        [start, end] => (start, end, 1),
        [start, end, step] => (start, end, step),
        _ => return Err(ExecutionError::MissingArgumentOrTarget),
    };
    if step == 0 {
        return Err(failure("range", "the step of a range cannot be 0"));
    }
    let distance = if step > 0 { i128::from(end) - i128::from(start) } else { i128::from(start) - i128::from(end) };
    let stride = i128::from(step).abs();
    let count = if distance <= 0 { 0 } else { (distance + stride - 1) / stride };
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    if count > ITEMS.get() {
        TOO_MANY.set(Some(count));
        SPENT.set(true);
        return Err(failure("range", format!("{count} entries")));
    }
    let mut list: Vec<Box<dyn Val + 'v>> = Vec::with_capacity(count as usize);
    let mut next = start;
    for _ in 0..count {
        list.push(Box::new(CelInt::from(next)));
        next = next.wrapping_add(step);
    }
    Ok(CowVal::owned(CelList::from(list)))
}

fn whole(value: &dyn Val) -> Result<i64, ExecutionError> {
    if let Some(value) = value.downcast_ref::<CelInt>() {
        return Ok(*value.inner());
    }
    let unsigned = value.downcast_ref::<CelUInt>().and_then(|value| i64::try_from(*value.inner()).ok());
    unsigned.ok_or_else(|| failure("range", format!("range takes integers, not {}", value.get_type().name())))
}

fn matches<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let [text, pattern] = &args[..] else { return Err(ExecutionError::MissingArgumentOrTarget) };
    let (Some(text), Some(pattern)) = (text.downcast_ref::<CelString>(), pattern.downcast_ref::<CelString>()) else {
        return Err(failure("matches", "matches takes strings"));
    };
    PATTERNS.with_borrow_mut(|patterns| {
        if !patterns.contains_key(pattern.inner()) {
            charge(PATTERN_COST)?;
            let compiled = regex::RegexBuilder::new(pattern.inner())
                .size_limit(PATTERN_BYTES)
                .dfa_size_limit(PATTERN_BYTES)
                .build()
                .map_err(|_| failure("matches", "not a pattern, or too large a one"))?;
            patterns.insert(pattern.inner().to_owned(), compiled);
        }
        charge(text.inner().len() as u64)?;
        let found = patterns.get(pattern.inner()).is_some_and(|compiled| compiled.is_match(text.inner()));
        Ok(CowVal::owned(CelBool::from(found)))
    })
}
