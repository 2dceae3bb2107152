use api::reason::Reason;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{
    super::{Account, Expr, ExprError, Scope, no_values},
    Cel,
};

fn values(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn evaluated(source: &str, params: Value, results: Value) -> Result<Value, ExprError> {
    charged(source, params, results, &Account::default())
}

fn charged(source: &str, params: Value, results: Value, account: &Account) -> Result<Value, ExprError> {
    let (params, results, run) = (values(params), values(results), values(json!({"name": "r", "uid": "u"})));
    let scope = Scope { params: &params, run: &run, item: no_values(), results: &results, max_items: 100_000, account };
    Expr::parse(source)?.evaluate(&scope)
}

fn check(source: &str, params: Value, expected: Value) {
    assert_eq!(evaluated(source, params, json!({})), Ok(expected), "{source}");
}

fn refused(source: &str) -> ExprError {
    let params = json!({"x": 1, "s": "a", "xs": [1, 2], "m": {"b": 1, "a": 2}});
    evaluated(source, params, json!({"a": 1})).expect_err(source)
}

#[test]
fn expressions_give_typed_values() {
    check("params.n + 1", json!({"n": 1}), json!(2));
    check("params.n / 2", json!({"n": 7}), json!(3));
    check("params.f * 2.0", json!({"f": 1.5}), json!(3.0));
    check("params.a == 'x' && !(params.b in [1, 2])", json!({"a": "x", "b": 3}), json!(true));
    check("range(3)", json!({}), json!([0, 1, 2]));
    check("range(1, 8, 3)", json!({}), json!([1, 4, 7]));
    check("range(5, 0, -2)", json!({}), json!([5, 3, 1]));
    check("range(3, 1)", json!({}), json!([]));
    check("params.xs.map(x, x * x).filter(x, x > 1)", json!({"xs": [1, 2, 3]}), json!([4, 9]));
    check("params.xs.exists_one(x, x == 2)", json!({"xs": [1, 2, 3]}), json!(true));
    check("{'k': params.n, 'l': [null, true]}", json!({"n": "v"}), json!({"k": "v", "l": [null, true]}));
    check("has(params.m.k) ? params.m.k : 'none'", json!({"m": {}}), json!("none"));
    check("params['a-b'] + '!'", json!({"a-b": "c"}), json!("c!"));
    check("run.name + '/' + string(params.n)", json!({"n": 5}), json!("r/5"));
    check("params.s.matches('^a+$') && params.s.startsWith('a')", json!({"s": "aaa"}), json!(true));
    check("size(params.s)", json!({"s": "日本"}), json!(2));
}

#[test]
fn integers_stay_exact() {
    for number in [json!(i64::MAX), json!(i64::MIN), json!(u64::MAX), json!(9_007_199_254_740_993_i64)] {
        check("[params.n][0]", json!({"n": number}), number);
    }
    assert!(evaluated("params.n + 1", json!({"n": i64::MAX}), json!({})).is_err());
    assert!(
        evaluated("params.n / 0", json!({"n": 1}), json!({})).unwrap_err().to_string().contains("division by zero")
    );
}

#[test]
fn what_is_no_finite_number_is_refused() {
    for source in ["0.0 / 0.0", "1.0 / 0.0", "[1e308 * 10.0]"] {
        assert!(refused(source).to_string().contains("finite"), "{source}");
    }
}

#[test]
fn names_of_steps_may_have_dashes() {
    let results = json!({"a-b": {"n": 2}, "c": 3});
    let value = evaluated("steps.a-b.result.n - steps.c.result", json!({}), results.clone());
    assert_eq!(value, Ok(json!(-1)));
    let value = evaluated("steps.a-b.result.n-1 == 1 && 'steps.a-b.x' != ''", json!({}), results);
    assert_eq!(value, Ok(json!(true)));
}

#[test]
fn loops_over_mappings_are_in_order_of_the_keys() {
    let keys: Vec<String> = (0..50).map(|i| format!("k{i:02}")).collect();
    let map: Map<String, Value> = keys.iter().rev().map(|key| (key.clone(), json!(1))).collect();
    check("params.m.map(k, k)", json!({ "m": map }), json!(keys));
}

#[test]
fn mistakes_have_a_column_and_a_remedy() {
    let check = |source: &str, column: usize, part: &str| match Cel::parse(source) {
        Err(ExprError::Syntax { column: found, message }) => {
            assert!(found == column && message.contains(part), "{source}: column {found}: {message}");
        }
        other => panic!("{source}: {other:?}"),
    };
    check("params.x >", 11, "unexpected end of the expression");
    check("params.x + )", 12, "unexpected");
    check("1 + paramz.x", 5, "did you mean `params`?");
    check("1 + foo(2)", 8, "unknown function `foo`");
    check("1 + siez(params.x)", 9, "did you mean `size`?");
    check("steps.a-b.result + steps.c-d.output", 20, "steps.<name>.result");
    check("steps.a-b-c.result + steps.d.result + nope", 39, "unknown name `nope`");
    check("1 + steps", 5, "steps.<name>.result");
    check("[1].map(params, params)", 8, "is taken");
    check("flatten(steps.a.result)", 8, "stands alone");
    check("'abc", 1, "never closed");
    check("b'abc'", 1, "byte strings");
    check("Foo{a: 1}", 4, "messages");
    check("[1].map(a, [1].map(b, [1].map(c, c)))", 30, "nested deeper than 2");
    check("params.x.map(1)", 13, "takes a variable");
    check("`a`", 1, "");
    check("optional.of(1)", 12, "unknown function");
    check("params.?x", 7, "unsupported");
}

#[test]
fn evaluation_says_what_is_wrong_without_the_values() {
    for (source, reason, part) in [
        ("params.m.nokey", Reason::InvalidExpression, "no key \"nokey\""),
        ("params.m['no' + 'key']", Reason::InvalidExpression, "no key \"nokey\""),
        ("params.xs[5 + 0]", Reason::InvalidExpression, "no index 5"),
        ("params.x + params.s", Reason::TypeMismatch, "an integer"),
        ("params.x < params.s", Reason::TypeMismatch, "int, string"),
        ("params.s.size() + params.xs.startsWith('a')", Reason::TypeMismatch, "startsWith"),
        ("range('a')", Reason::InvalidExpression, "integers"),
        ("range(1, 2, 0)", Reason::InvalidExpression, "cannot be 0"),
        ("params.s.matches('(')", Reason::InvalidExpression, "not a pattern"),
        ("params.s ? 1 : 2", Reason::TypeMismatch, "bool"),
        ("{1: 2}", Reason::TypeMismatch, "keys"),
        ("9223372036854775807 + params.x", Reason::InvalidExpression, "64 bits"),
    ] {
        let error = refused(source);
        assert!(error.reason() == reason && error.to_string().contains(part), "{source}: {} {error}", error.reason());
    }
}

#[test]
fn length_and_depth_are_bounded_before_parsing() {
    let long = format!("params.x + '{}'", "a".repeat(4096));
    assert!(refused(&long).to_string().contains("at most 4096"));
    for open in ["(", "[", "size("] {
        let source = format!("{}1{}", open.repeat(65), if open == "[" { "]" } else { ")" }.repeat(65));
        assert!(refused(&source).to_string().contains("64 levels"), "{open}");
    }
    assert!(refused(&vec!["1"; 502].join("+")).to_string().contains("at most 1000"));
}

#[test]
fn the_deepest_allowed_expressions_need_no_large_stack() {
    let small = std::thread::Builder::new().stack_size(1 << 20).spawn(|| {
        for (open, close) in
            [("(", ")"), ("[", "]"), ("{'a': ", "}"), ("size(", ")"), ("true ? (", ") : 1"), ("-(", ")")]
        {
            let source = format!("{}1{}", open.repeat(64), close.repeat(64));
            let parsed = Cel::parse(&source);
            let known = match &parsed {
                Ok(_) => true,
                Err(ExprError::Syntax { message, .. }) => !message.contains("cannot be handled"),
                Err(_) => false,
            };
            assert!(known, "{open}: {parsed:?}");
            let _ = evaluated(&source, json!({}), json!({}));
        }
        for operator in ["+", "==", " && ", "*", " ? true : "] {
            let source = vec!["true"; 250].join(operator);
            let _ = evaluated(&source, json!({}), json!({}));
        }
        let deep = Cel::parse(&format!("params{}", ".a".repeat(490))).unwrap_err();
        assert!(deep.to_string().contains("nested too deeply"), "{deep}");
        let _ = evaluated(&format!("{}true", "!".repeat(900)), json!({}), json!({}));
        assert_eq!(evaluated(&vec!["1"; 300].join("+"), json!({}), json!({})), Ok(json!(300)));
    });
    small.expect("a thread").join().expect("no overflow");
}

#[test]
fn cost_is_bounded() {
    let xs: Vec<u32> = (0..3000).collect();
    let text = "a".repeat(200_000);
    for source in [
        "params.xs.map(x, params.xs.map(y, x * y))",
        "params.xs.filter(x, params.xs == params.xs)",
        "params.xs.all(x, params.xs.all(y, x != -1))",
        "params.xs.exists(x, params.xs.exists(y, x == -1))",
        "params.xs.all(x, params.xs.exists(y, y > 5000) || true)",
        "params.xs.map(x, params.text)",
        "params.xs.filter(x, params.text + params.text == params.text)",
        "params.xs.filter(x, x in params.xs)",
        "params.xs.filter(x, params.text.matches('a*b' + string(x)))",
        "params.xs.filter(x, params.text.contains('b'))",
        "range(10000).map(x, [x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x])",
        "params.xs.map(x, [params.xs, params.xs, params.xs])",
        "range(9000).map(x, range(9000))",
        "range(9000).all(x, range(9000).all(y, true))",
    ] {
        let account = Account::of(100_000);
        let params = json!({"xs": xs, "text": text});
        let error = charged(source, params, json!({}), &account).expect_err(source);
        assert_eq!(error.reason(), Reason::ExpressionTooExpensive, "{source}: {error}");
        assert!(error.to_string().contains("too many steps to evaluate"), "{source}: {error}");
    }
    for (source, count) in [
        ("range(100001)", "100001"),
        ("range(-9223372036854775807, 9223372036854775807)", "18446744073709551614"),
        ("range(100001).size() == 0 || true", "100001"),
    ] {
        let error = refused(source);
        assert_eq!(error.reason(), Reason::TooManyItems, "{source}: {error}");
        assert_eq!(error.to_string(), format!("range makes {count} entries, the limit is 100000"), "{source}");
    }
    check("range(100000).map(x, x * 2).size()", json!({}), json!(100_000)); // within the budget of one evaluation
}

#[test]
fn several_evaluations_share_an_account() {
    let (cel, uses) = Cel::parse("range(900).map(x, x).size()").unwrap();
    let account = Account::of(100_000);
    let scope = Scope {
        params: no_values(),
        run: no_values(),
        item: no_values(),
        results: no_values(),
        max_items: 100_000,
        account: &account,
    };
    let worked = (0..1000).take_while(|_| cel.evaluate(&uses, &scope).is_ok()).count();
    assert!((10..100).contains(&worked), "{worked}");
}

#[test]
fn a_large_pattern_is_refused() {
    let error = refused("params.s.matches('(a{1000}){1000}')");
    assert!(error.to_string().contains("too large"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is written, the answer is a value or an error: no panic, no overflow of the stack, no hang.
    #[test]
    fn any_text_is_answered(source in "[a-z0-9_.,:?!&|+*/%<>=\\[\\](){}'\"\\\\ \u{e9}-]{0,60}") {
        let _ = evaluated(&source, json!({"x": 1, "xs": [1, 2]}), json!({"a": 1}));
    }

    /// Texts made of the language's own words get further.
    #[test]
    fn any_sequence_of_words_is_answered(words in prop::collection::vec(prop::sample::select(vec![
        "params", ".x", ".xs", "[", "]", "(", ")", "{", "}", "1", "0", "-", "!", "+", "*", "/", "%", "==", "<", "&&", "||",
        "?", ":", ",", "'a'", "\"b\"", "''", "true", "null", "in", ".map(", ".filter(", ".all(", "x,", "range(", "size(",
        "has(", "steps.a-b", ".result", "item", "run.name", "1u", "1.5", "9223372036854775807", "r'", "'''", "\\", " ",
        ".matches(", "string(", "int(", "@", "`", "b'x'", "//", "\n",
    ]), 0..30)) {
        let _ = evaluated(&words.concat(), json!({"x": 1, "xs": [1, 2]}), json!({"a-b": 1}));
    }

    /// JSON comes back as it was.
    #[test]
    fn json_survives(text in ".*", integer in any::<i64>(), unsigned in any::<u64>(), float in -1e300..1e300_f64) {
        let value = json!({"t": text, "l": [integer, unsigned, float, null, true], "m": {text.clone(): integer}});
        prop_assert_eq!(evaluated("[params.v][0]", json!({"v": value.clone()}), json!({})), Ok(value));
    }
}
