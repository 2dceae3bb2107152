//! Reading manifests: encodings, limits, folders, places of mistakes. What people may get wrong is in `bad_inputs.rs`.

use std::{fs, io::Cursor, path::Path, time::Instant};

use api::reason::Reason;
use manifest::{Object, Reading};

fn read(text: &str) -> Reading {
    manifest::read_text(Path::new("flow.yaml"), text.as_bytes())
}

#[test]
fn every_problem_of_a_file_has_the_line_it_is_on() {
    let text = "apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n  steps:\n  - name: a\n    cal: m:f\n---\n# two\nkind: Pipelin\napiVersion: daskade.dev/v1alpha1\n";
    let found: Vec<String> = read(text).problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "flow.yaml:7 (document 1): spec.steps[0].cal: UnknownField: there is no such field (did you mean call?)",
            "flow.yaml:6 (document 1): spec.steps[0]: Conflict: give exactly one of call and script",
            "flow.yaml:10 (document 2): kind: UnknownKind: daskade.dev has no kind \"Pipelin\" (did you mean Pipeline?)",
        ]
    );
}

#[test]
fn byte_order_marks_and_windows_line_ends_are_read() {
    let text = "\u{feff}apiVersion: daskade.dev/v1alpha1\r\nkind: Pipeline\r\nmetadata: {name: p}\r\nspec:\r\n  steps:\r\n  - name: a\r\n    script: |\r\n      a = 1\r\n      output = a\r\n";
    let reading = read(text);
    assert_eq!(reading.problems, []);
    let Object::Pipeline(pipeline) = &reading.objects[0].object else { panic!() };
    assert_eq!(pipeline.spec.steps[0].script.as_deref(), Some("a = 1\noutput = a\n"));
}

#[test]
fn bytes_that_are_no_text_are_told_with_their_place() {
    let cases: [(&[u8], &str, &str); 4] = [
        (b"a: \xff", "InvalidText", "not UTF-8 at byte 3"),
        (b"a: \0", "InvalidText", "NUL byte at byte 3"),
        (b"\xff\xfea\0", "InvalidText", "UTF-16"),
        (b"a: \xed\xa0\x80", "InvalidText", "not UTF-8 at byte 3"),
    ];
    for (bytes, reason, part) in cases {
        let problems = manifest::read_text(Path::new("x"), bytes).problems;
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].problem.reason.as_str(), reason);
        assert!(problems[0].to_string().contains(part), "{}", problems[0]);
    }
}

#[test]
fn json_is_read_too_with_its_escapes() {
    let text = r#"{"apiVersion": "daskade.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "p"},
        "spec": {"steps": [{"name": "a", "call": "m:f", "args": ["\u00e9\/\"\n", "\ud83d\ude00", "\\ud83d\\ude00", 1e3, -0.5]}]}}"#;
    let reading = read(text);
    assert_eq!(reading.problems, []);
    let Object::Pipeline(pipeline) = &reading.objects[0].object else { panic!() };
    let args = serde_json::to_string(&pipeline.spec.steps[0].args).unwrap();
    assert_eq!(args, "[\"é/\\\"\\n\",\"😀\",\"\\\\ud83d\\\\ude00\",1000.0,-0.5]");
}

#[test]
fn a_lone_surrogate_is_refused() {
    for escape in [r"\ud83d", r"\ude00", r"\ud83dx", r"\ud83d\u0041"] {
        let text = format!("{{\"apiVersion\": \"daskade.dev/v1alpha1\", \"kind\": \"{escape}\"}}");
        let problems = read(&text).problems;
        assert_eq!(problems.len(), 1, "{escape}");
        assert!(
            [Reason::InvalidYaml, Reason::InvalidText].contains(&problems[0].problem.reason),
            "{escape}: {}",
            problems[0]
        );
        assert!(problems[0].to_string().contains("Unicode"), "{escape}: {}", problems[0]);
    }
}

fn pipeline_with(args: &str) -> String {
    format!(
        "apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {{name: p}}\nspec:\n  steps:\n  - {{name: a, call: \"m:f\", args: {args}}}\n"
    )
}

#[test]
fn a_long_line_costs_time_in_proportion() {
    let time = |bytes: usize| {
        let text = pipeline_with(&format!("[{}]", "1, ".repeat(bytes / 3)));
        let start = Instant::now();
        let reading = read(&text);
        assert!(reading.problems.len() <= 1, "{:?}", reading.problems);
        start.elapsed().as_secs_f64()
    };
    read(&pipeline_with("[]"));
    let (small, large) = (time(100_000), time(800_000));
    assert!(large < 30.0 * small.max(0.01), "{small} {large}");
    let text = pipeline_with(&format!("[\"{}\"]", "x".repeat(900_000)));
    let start = Instant::now();
    assert_eq!(read(&text).problems, []);
    assert!(start.elapsed().as_secs_f64() < 5.0);
}

#[test]
fn an_object_larger_than_kubernetes_takes_is_refused() {
    let problems = read(&pipeline_with(&format!("[\"{}\"]", "x".repeat(1024 * 1024)))).problems;
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].problem.reason, Reason::TooLarge);
    assert!(problems[0].to_string().contains("bytes as JSON, may have at most"), "{}", problems[0]);
}

#[test]
fn a_file_of_more_than_8_mib_is_refused() {
    let problems = read(&"#".repeat(8 * 1024 * 1024 + 1)).problems;
    assert_eq!((problems.len(), problems[0].problem.reason), (1, Reason::TooLarge));
    assert!(problems[0].to_string().contains("the file is larger than 8 MiB"), "{}", problems[0]);
}

#[test]
fn deep_nesting_is_refused_without_recursion() {
    for (text, words) in [
        ("[".repeat(100_000), "recursion limit exceeded"),
        ("- ".repeat(100_000), "nested more than 64 deep"),
        ("a: ".repeat(3) + &"- ".repeat(100_000), "mapping values are not allowed"),
        ("{a: ".repeat(100_000), "recursion limit exceeded"),
    ] {
        let problems = read(&text).problems;
        assert_eq!(problems.len(), 1);
        assert!([Reason::TooDeep, Reason::InvalidYaml].contains(&problems[0].problem.reason), "{}", problems[0]);
        assert!(problems[0].to_string().contains(words), "{}", problems[0]);
    }
    assert_eq!(read(&pipeline_with(&format!("{}1{}", "[".repeat(50), "]".repeat(50)))).problems, []);
    let problems = read(&pipeline_with(&format!("{}1{}", "[".repeat(64), "]".repeat(64)))).problems;
    assert_eq!(problems[0].problem.reason, Reason::TooDeep);
    assert!(problems[0].to_string().contains("nested more than"), "{}", problems[0]);
}

#[test]
fn anchors_may_not_hold_too_much_either() {
    let nested = "&a [".repeat(50) + "&x [" + &"1,".repeat(50_000) + "]" + &"]".repeat(50);
    let problems = read(&pipeline_with(&nested)).problems;
    assert_eq!(problems.iter().map(|p| p.problem.reason.as_str()).collect::<Vec<_>>(), ["AliasLimit"]);
    assert!(problems[0].to_string().contains("anchors hold too much"), "{}", problems[0]);
    let text = "x: &x \"".to_owned() + &"y".repeat(1_000_000) + "\"\nz: [" + &"*x, ".repeat(100) + "]\n";
    let problem = &read(&text).problems[0];
    assert_eq!(problem.problem.reason, Reason::AliasLimit);
    assert!(problem.to_string().contains("aliases expand to too much"), "{problem}");
}

#[test]
fn many_problems_are_capped_and_counted() {
    let text = pipeline_with("[]") + &"  - 1\n".repeat(5_000);
    let problems = read(&text).problems;
    assert_eq!(problems.len(), 201);
    assert!(problems[200].to_string().contains("4800 more problems are not shown"), "{}", problems[200]);
}

#[test]
fn ten_thousand_steps_are_read_and_one_more_is_refused() {
    let steps = |n: usize| {
        let steps: String = (0..n).map(|i| format!("  - {{name: s{i}, call: \"m:f\"}}\n")).collect();
        format!("apiVersion: daskade.dev/v1alpha1\nkind: Pipeline\nmetadata: {{name: p}}\nspec:\n  steps:\n{steps}")
    };
    assert_eq!(read(&steps(10_000)).problems, []);
    let problems = read(&steps(10_001)).problems;
    assert_eq!(
        (problems.len(), problems[0].problem.reason, problems[0].problem.path.as_str()),
        (1, Reason::TooLarge, "spec.steps")
    );
    assert!(problems[0].to_string().contains("has 10001 entries, may have at most 10000"), "{}", problems[0]);
}

#[test]
fn folders_are_read_in_order_and_what_is_no_manifest_there_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let named = |name: &str| pipeline_with("[]").replace("name: p", &format!("name: {name}"));
    write("b.yaml", &named("second"));
    write("a/z.yml", &named("first"));
    write(
        "c.json",
        "{\"apiVersion\":\"daskade.dev/v1alpha1\",\"kind\":\"DaskCluster\",\"metadata\":{\"name\":\"third\"},\"spec\":{}}",
    );
    write("values.yaml", "replicas: 3\n");
    write("notes.txt", "not: yaml: at all");
    write(".hidden/x.yaml", "broken: [");
    let paths = [folder.path().to_owned(), folder.path().join("b.yaml"), "-".into()];
    let reading = manifest::read(&paths, &mut Cursor::new(named("last")));
    assert_eq!(reading.problems, []);
    let names: Vec<&str> = reading.objects.iter().map(|loaded| loaded.object.name()).collect();
    assert_eq!(names, ["first", "second", "third", "last"]);
    assert_eq!(reading.objects[3].file, Path::new("-"));
    assert_eq!(reading.notes.len(), 1);
    assert!(reading.notes[0].to_string().contains("values.yaml (document 1): no manifest"));
}

#[test]
fn paths_that_cannot_be_read_are_all_told() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.yaml");
    let problems = manifest::load(&[missing.clone(), folder.path().to_owned()]).unwrap_err();
    let reasons: Vec<&str> = problems.iter().map(|problem| problem.problem.reason.as_str()).collect();
    assert_eq!(reasons, ["Unreadable", "Empty"]);
    assert!(problems[0].to_string().contains("missing.yaml"));
    assert!(problems[1].to_string().contains("no file that ends in .yaml, .yml or .json"), "{}", problems[1]);
}

#[test]
fn values_are_read_for_files_of_parameters() {
    assert_eq!(manifest::read_value("n: 5\nx: [no, 1e3]\n").unwrap(), serde_json::json!({"n": 5, "x": ["no", 1000.0]}));
    assert!(manifest::read_value("").unwrap().is_null());
    for (text, part) in [
        ("a: 1\n---\nb: 2\n", "2 documents"),
        ("a: 1\na: 2\n", "line 2: a: DuplicateKey"),
        ("a: 99999999999999999999\n", "InvalidNumber"),
        ("a: [", "InvalidYaml"),
    ] {
        let error = manifest::read_value(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn a_status_left_in_a_file_is_not_read() {
    let text = pipeline_with("[]") + "status: {conditions: 5, whatever: true}\n";
    let reading = read(&text);
    assert_eq!(reading.problems, []);
    let Object::Pipeline(pipeline) = &reading.objects[0].object else { panic!() };
    assert_eq!(pipeline.status, None);
}

#[test]
fn words_that_kubectl_reads_otherwise_are_noted() {
    let reading = read(&pipeline_with("{x: no, y: \"no\", z: 0777, w: 0, v: 1_000, u: [[off]]}"));
    assert_eq!(reading.problems, []);
    let notes: Vec<String> = reading.notes.iter().map(ToString::to_string).collect();
    let expected =
        [("no", "false"), ("y", "true"), ("0777", "another number"), ("1_000", "another number"), ("off", "false")];
    assert_eq!(notes.len(), expected.len(), "{notes:?}");
    for (note, (text, taken_for)) in notes.iter().zip(expected) {
        assert!(note.contains(&format!("line 6: kubectl reads {text} as {taken_for}")), "{note}");
    }
}
