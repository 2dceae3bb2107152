//! Reading several files: what was found, what was left alone and all that is wrong.

use std::{
    collections::{BTreeSet, HashMap},
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    check::{Finding, Findings, check_sound},
    files,
    object::{self, Object, Outcome},
    tree::{Content, Path as ValuePath},
    yaml,
};
use api::problem::Problem;
use api::reason::Reason;

/// An object and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// File as the user named it; `-` is standard input.
    pub file: PathBuf,
    /// 1-based document in the file.
    pub document: usize,
    /// The object.
    pub object: Object,
}

/// A problem and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileProblem {
    /// File as the user named it; `-` is standard input.
    pub file: PathBuf,
    /// 1-based document in the file; `None` when it is about the whole file.
    pub document: Option<usize>,
    /// 1-based line in the file.
    pub line: Option<u32>,
    /// What is wrong.
    pub problem: Problem,
}

impl fmt::Display for FileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.file, self.line, self.document)?;
        write!(f, ": {}", self.problem)
    }
}

/// Something that was left alone, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// File as the user named it.
    pub file: PathBuf,
    /// 1-based document in the file.
    pub document: usize,
    /// What was left alone.
    pub message: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.file, None, Some(self.document))?;
        write!(f, ": {}", self.message)
    }
}

fn place(f: &mut fmt::Formatter<'_>, file: &Path, line: Option<u32>, document: Option<usize>) -> fmt::Result {
    if file == Path::new("-") {
        f.write_str("<stdin>")?;
    } else {
        write!(f, "{}", file.display())?;
    }
    if let Some(line) = line {
        write!(f, ":{line}")?;
    }
    match document {
        Some(document) => write!(f, " (document {document})"),
        None => Ok(()),
    }
}

/// All that was read.
#[derive(Debug, Default)]
pub struct Reading {
    /// Objects without problems, in order of files and documents.
    pub objects: Vec<Loaded>,
    /// What was left alone.
    pub notes: Vec<Note>,
    /// All that is wrong.
    pub problems: Vec<FileProblem>,
    /// Of documents with problems, what can be read of them all the same: other checks may find more.
    pub rest: Vec<Loaded>,
}

/// Reads all objects of these files and folders (`-`: standard input); all problems if there is any.
pub fn load(paths: &[PathBuf]) -> Result<Vec<Loaded>, Vec<FileProblem>> {
    let reading = read(paths, &mut std::io::stdin().lock());
    if reading.problems.is_empty() { Ok(reading.objects) } else { Err(reading.problems) }
}

/// As [`load`], with the objects that are well, notes on what was left alone, and a given standard input.
pub fn read(paths: &[PathBuf], stdin: &mut dyn Read) -> Reading {
    let mut reading = Reading::default();
    let mut seen = BTreeSet::new();
    for path in paths {
        let sources = match files::sources(path) {
            Ok(sources) => sources,
            Err(problem) => {
                reading.problems.push(FileProblem { file: path.clone(), document: None, line: None, problem });
                continue;
            }
        };
        for source in sources {
            let identity = fs::canonicalize(&source.path).unwrap_or_else(|_| source.path.clone());
            if !seen.insert(identity) {
                continue;
            }
            match files::text(&source.path, stdin) {
                Ok(text) => read_source(&source.path, &text, source.found, &mut reading),
                Err(problem) => {
                    reading.problems.push(FileProblem { file: source.path, document: None, line: None, problem });
                }
            }
        }
    }
    finish(&mut reading, paths);
    reading
}

/// Reads one text, as if it were the file `file`.
pub fn read_text(file: &Path, bytes: &[u8]) -> Reading {
    let mut reading = Reading::default();
    match files::decode(bytes.to_vec()) {
        Ok(text) => read_source(file, &text, false, &mut reading),
        Err(problem) => {
            reading.problems.push(FileProblem { file: file.to_owned(), document: None, line: None, problem })
        }
    }
    finish(&mut reading, &[file.to_owned()]);
    reading
}

/// Reads one value (YAML or JSON) that is not a manifest, such as a file of parameters; all problems in one text.
pub fn read_value(text: &str) -> Result<Value, String> {
    let text = files::decode(text.as_bytes().to_vec()).map_err(|problem| problem.to_string())?;
    let mut documents = yaml::documents(&text);
    documents.retain(|document| !document.root.as_ref().is_ok_and(|root| root.value == Content::Null));
    let document = match documents.len() {
        0 => return Ok(Value::Null),
        1 => documents.remove(0),
        more => return Err(format!("it has {more} documents, must have one")),
    };
    let root = document.root.map_err(|error| format!("line {}: {}: {}", error.line, error.reason, error.message))?;
    let mut findings = Findings::default();
    check_sound(&root, &mut ValuePath::default(), &mut findings);
    if findings.is_empty() {
        return Ok(root.to_json());
    }
    let lines: Vec<String> =
        findings.into_list().into_iter().map(|Finding { line, problem }| format!("line {line}: {problem}")).collect();
    Err(lines.join("\n"))
}

fn read_source(file: &Path, text: &str, found: bool, reading: &mut Reading) {
    let mut empty = true;
    for document in yaml::documents(text) {
        let mut findings = Findings::default();
        let note = |message: String| Note { file: file.to_owned(), document: document.index, message };
        match &document.root {
            Err(error) => {
                let problem = Problem {
                    path: String::new(),
                    reason: error.reason,
                    message: error.message.clone(),
                    help: error.help.clone(),
                };
                findings.push(error.line, problem);
            }
            Ok(root) => match object::read(root, &mut findings) {
                Some(Outcome::Ours(object)) => {
                    for yaml::Ambiguous { line, text, taken_for } in &document.ambiguous {
                        let message = format!(
                            "line {line}: kubectl reads {text} as {taken_for}; quote it if the manifest is meant for a cluster too"
                        );
                        reading.notes.push(note(message));
                    }
                    reading.objects.push(Loaded { file: file.to_owned(), document: document.index, object });
                }
                Some(Outcome::Foreign { api_version, kind }) => {
                    reading.notes.push(note(format!("{kind} of {api_version} is left alone")));
                }
                Some(Outcome::Untyped) if found => {
                    reading.notes.push(note("no manifest (neither apiVersion nor kind): left alone".to_owned()));
                }
                Some(Outcome::Untyped) => {
                    for field in ["apiVersion", "kind"] {
                        findings.push(root.line, Problem::new(Reason::MissingField, field, "the field is missing"));
                    }
                }
                Some(Outcome::Empty) => continue,
                None => {}
            },
        }
        empty = false;
        let findings = findings.into_list();
        if let Ok(root) = &document.root
            && !findings.is_empty()
        {
            let problems: Vec<Problem> = findings.iter().map(|finding| finding.problem.clone()).collect();
            let rest = object::read_rest(root, &problems);
            let rest = rest.map(|object| Loaded { file: file.to_owned(), document: document.index, object });
            reading.rest.extend(rest);
        }
        for Finding { line, problem } in findings {
            reading.problems.push(FileProblem {
                file: file.to_owned(),
                document: Some(document.index),
                line: (line > 0).then_some(line),
                problem,
            });
        }
    }
    if empty && !found {
        let problem = Problem::new(Reason::Empty, "", "the file has no document");
        reading.problems.push(FileProblem { file: file.to_owned(), document: None, line: None, problem });
    }
}

/// What only the whole tells: the same object twice, or none at all.
fn finish(reading: &mut Reading, paths: &[PathBuf]) {
    let mut first: HashMap<(&str, &str, &str), &Loaded> = HashMap::new();
    for loaded in &reading.objects {
        let object = &loaded.object;
        if object.name().is_empty() {
            continue;
        }
        let key = (object.kind(), object.namespace().unwrap_or_default(), object.name());
        let Some(earlier) = first.get(&key) else {
            first.insert(key, loaded);
            continue;
        };
        let message = format!(
            "{} {} appears twice, first in {} (document {})",
            object.kind(),
            object.name(),
            earlier.file.display(),
            earlier.document
        );
        reading.problems.push(FileProblem {
            file: loaded.file.clone(),
            document: Some(loaded.document),
            line: None,
            problem: Problem::new(Reason::Duplicate, "metadata.name", message),
        });
    }
    if reading.objects.is_empty() && reading.problems.is_empty() {
        let file = paths.first().cloned().unwrap_or_else(|| PathBuf::from("-"));
        let message = "there is no DaskCluster, Pipeline or PipelineRun".to_owned();
        reading.problems.push(FileProblem {
            file,
            document: None,
            line: None,
            problem: Problem::new(Reason::Empty, "", message),
        });
    }
}
