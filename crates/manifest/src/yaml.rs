//! Text → documents. YAML 1.2 (JSON is YAML), events of the parser folded into trees without recursion, with limits on
//! depth, on nodes and on what aliases expand to.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde::de::IgnoredAny;

use super::{
    scalar::{self, Scalar},
    tree::{Content, Entry, Node, quote},
};
use api::reason::Reason;

/// Deepest nesting of lists and mappings.
pub(crate) const DEPTH_MAX: usize = 64;
/// Most nodes of one document.
pub(crate) const NODES_MAX: usize = 2_000_000;
/// Most nodes of one document that come from aliases.
pub(crate) const ALIAS_NODES_MAX: usize = 100_000;
/// Most bytes of text in one document that come from aliases.
pub(crate) const ALIAS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// One document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    /// 1-based place in the file, empty documents counted.
    pub(crate) index: usize,
    /// Its tree, or why there is none.
    pub(crate) root: Result<Node, SyntaxError>,
    /// Plain scalars that `kubectl` reads as something else: line, text and what it takes it for. The first few.
    pub(crate) ambiguous: Vec<Ambiguous>,
}

/// A plain scalar that YAML 1.1 and 1.2 read differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ambiguous {
    pub(crate) line: u32,
    pub(crate) text: String,
    pub(crate) taken_for: &'static str,
}

/// Most of them that are kept.
const AMBIGUOUS_MAX: usize = 5;

/// Why a document cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) line: u32,
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl SyntaxError {
    fn new(line: u32, reason: Reason, message: impl Into<String>) -> Self {
        Self { line, reason, message: message.into(), help: None }
    }
}

/// Reads all documents. After a document that is not YAML, reading goes on at the next `---`.
pub(crate) fn documents(text: &str) -> Vec<Document> {
    let text = without_pairs(text);
    let mut found = Vec::new();
    let mut rest = &*text;
    let mut lines_before = 0_u32;
    while let Some(broken_line) = documents_until_error(rest, lines_before, &mut found) {
        let Some((offset, line)) = next_marker(rest, broken_line - lines_before) else { break };
        rest = &rest[offset..];
        lines_before += line;
    }
    found
}

/// JSON writes a character beyond the first 65536 as a pair of escapes, which YAML does not know: one YAML escape instead.
/// Only in a text that is JSON throughout, so that nothing but strings is touched.
fn without_pairs(text: &str) -> Cow<'_, str> {
    let json = text.trim_start().starts_with(['{', '[']) && text.contains("\\u");
    if !json || serde_json::from_str::<IgnoredAny>(text).is_err() {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let (escape, taken) = match pair(&rest[at..]) {
            Some(c) => (format!("\\U{:08X}", u32::from(c)), 12),
            None => (String::new(), 0),
        };
        // Any other escape is a backslash and one more ASCII character, left as they are.
        let taken = if taken == 0 { rest[at..].len().min(2) } else { taken };
        out.push_str(if escape.is_empty() { &rest[at..at + taken] } else { &escape });
        rest = &rest[at + taken..];
    }
    out.push_str(rest);
    Cow::Owned(out)
}

/// The character of a pair of escapes that the text begins with.
fn pair(text: &str) -> Option<char> {
    let unit = |range: std::ops::Range<usize>| {
        let escape = text.get(range)?.strip_prefix("\\u")?;
        u16::from_str_radix(escape, 16).ok()
    };
    char::decode_utf16([unit(0..6)?, unit(6..12)?]).next()?.ok().filter(|c| u32::from(*c) > 0xFFFF)
}

/// Byte offset and 0-based line of the first `---` after the 1-based `line`.
fn next_marker(text: &str, line: u32) -> Option<(usize, u32)> {
    let mut offset = 0;
    for (number, content) in text.split_inclusive('\n').enumerate() {
        let number = u32::try_from(number).ok()?;
        if number >= line.max(1) && content.starts_with("---") {
            return Some((offset, number));
        }
        offset += content.len();
    }
    None
}

/// Reads up to the first document that is broken; its line, or `None` at the end of the text.
fn documents_until_error(text: &str, lines_before: u32, found: &mut Vec<Document>) -> Option<u32> {
    let mut builder = Builder { lines_before, ..Builder::default() };
    let index = |found: &Vec<Document>| found.last().map_or(1, |last| last.index + 1);
    for event in Parser::new_from_str(text) {
        let result = match event {
            Ok((event, span)) => builder.event(event, span),
            Err(error) => {
                let line = builder.line_at(error.marker().line());
                Err(syntax(text, line, lines_before, error.info()))
            }
        };
        match result {
            Ok(Some(root)) => {
                let ambiguous = std::mem::take(&mut builder.ambiguous);
                found.push(Document { index: index(found), root: Ok(root), ambiguous });
            }
            Ok(None) => {}
            Err(error) => {
                let line = error.line;
                found.push(Document { index: index(found), root: Err(error), ambiguous: Vec::new() });
                return Some(line);
            }
        }
    }
    None
}

fn syntax(text: &str, line: u32, lines_before: u32, info: &str) -> SyntaxError {
    let content = text.lines().nth((line - lines_before).saturating_sub(1) as usize).unwrap_or_default();
    let indent: String = content.chars().take_while(|c| c.is_whitespace()).collect();
    let mut error = SyntaxError::new(line, Reason::InvalidYaml, info.to_owned());
    if indent.contains('\t') {
        error.message = "the line is indented with a tab".to_owned();
        error.help = Some("indent with spaces".to_owned());
    } else if content.trim_start().starts_with(['@', '`', '%']) {
        error.help = Some("quote texts that begin with @, ` or %".to_owned());
    }
    error
}

#[derive(Default)]
struct Builder {
    lines_before: u32,
    stack: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    alias_nodes: usize,
    alias_bytes: usize,
    ambiguous: Vec<Ambiguous>,
}

/// A finished node that aliases may repeat, and what one repetition costs.
struct Anchored {
    node: Node,
    nodes: usize,
    bytes: usize,
}

/// A list or mapping that is not closed yet.
struct Open {
    line: u32,
    anchor: usize,
    content: OpenContent,
}

enum OpenContent {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<(String, u32)> },
}

impl Builder {
    fn line_at(&self, line: usize) -> u32 {
        self.lines_before + u32::try_from(line.max(1)).unwrap_or(u32::MAX - self.lines_before)
    }

    /// Takes one event; the tree when it ends a document.
    fn event(&mut self, event: Event<'_>, span: Span) -> Result<Option<Node>, SyntaxError> {
        let line = self.line_at(span.start.line());
        match event {
            Event::DocumentEnd => {
                let empty = Node { line, value: Content::Null };
                let root = self.root.take().unwrap_or(empty);
                let ambiguous = std::mem::take(&mut self.ambiguous);
                *self = Self { lines_before: self.lines_before, ambiguous, ..Self::default() };
                return Ok(Some(root));
            }
            Event::Scalar(text, style, anchor, tag) => {
                if matches!(style, ScalarStyle::Plain) && tag.is_none() {
                    self.note_ambiguous(&text, line);
                }
                if self.wants_key() {
                    if matches!(style, ScalarStyle::Plain) {
                        check_plain_key(&text, line)?;
                    }
                    return self.take_key(text.into_owned(), line).map(|()| None);
                }
                let value = scalar_content(&text, style, tag.as_deref());
                self.close(Node { line, value }, anchor)?;
            }
            Event::SequenceStart(anchor, tag) => {
                check_collection_tag(tag.as_deref(), "seq", line)?;
                self.open(line, anchor, OpenContent::List(Vec::new()))?;
            }
            Event::MappingStart(anchor, tag) => {
                check_collection_tag(tag.as_deref(), "map", line)?;
                self.open(line, anchor, OpenContent::Map { entries: Vec::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(open) = self.stack.pop() {
                    let value = match open.content {
                        OpenContent::List(list) => Content::List(list),
                        OpenContent::Map { entries, .. } => Content::Map(entries),
                    };
                    self.close(Node { line: open.line, value }, open.anchor)?;
                }
            }
            Event::Alias(anchor) => {
                if self.wants_key() {
                    return Err(SyntaxError::new(line, Reason::InvalidYaml, "an alias cannot be a key"));
                }
                let node = self.expand(anchor, line)?;
                self.close(node, 0)?;
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) => {}
        }
        Ok(None)
    }

    fn note_ambiguous(&mut self, text: &str, line: u32) {
        if self.ambiguous.len() < AMBIGUOUS_MAX
            && let Some(taken_for) = scalar::differs_in_yaml_1_1(text)
        {
            self.ambiguous.push(Ambiguous { line, text: text.to_owned(), taken_for });
        }
    }

    fn wants_key(&self) -> bool {
        matches!(self.stack.last(), Some(Open { content: OpenContent::Map { key: None, .. }, .. }))
    }

    fn take_key(&mut self, taken: String, line: u32) -> Result<(), SyntaxError> {
        self.count(line)?;
        if let Some(Open { content: OpenContent::Map { key, .. }, .. }) = self.stack.last_mut() {
            *key = Some((taken, line));
        }
        Ok(())
    }

    fn count(&mut self, line: u32) -> Result<(), SyntaxError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(SyntaxError::new(
                line,
                Reason::TooLarge,
                format!("the document has more than {NODES_MAX} values"),
            ));
        }
        Ok(())
    }

    fn open(&mut self, line: u32, anchor: usize, content: OpenContent) -> Result<(), SyntaxError> {
        if self.wants_key() {
            return Err(SyntaxError::new(line, Reason::InvalidYaml, "a key is a list or mapping; keys are texts"));
        }
        if self.stack.len() >= DEPTH_MAX {
            let message = format!("lists and mappings are nested more than {DEPTH_MAX} deep");
            return Err(SyntaxError::new(line, Reason::TooDeep, message));
        }
        self.count(line)?;
        self.stack.push(Open { line, anchor, content });
        Ok(())
    }

    fn expand(&mut self, anchor: usize, line: u32) -> Result<Node, SyntaxError> {
        let Some(anchored) = self.anchors.get(&anchor) else {
            return Err(SyntaxError::new(line, Reason::InvalidYaml, "an alias stands inside what it repeats"));
        };
        self.alias_nodes = self.alias_nodes.saturating_add(anchored.nodes);
        self.alias_bytes = self.alias_bytes.saturating_add(anchored.bytes);
        if self.alias_nodes > ALIAS_NODES_MAX || self.alias_bytes > ALIAS_BYTES_MAX {
            let mut error = SyntaxError::new(line, Reason::AliasLimit, "aliases expand to too much");
            error.help = Some(format!("at most {ALIAS_NODES_MAX} values of a document may come from aliases"));
            return Err(error);
        }
        if self.stack.len() + depth(&anchored.node) > DEPTH_MAX {
            let message = format!("lists and mappings are nested more than {DEPTH_MAX} deep");
            return Err(SyntaxError::new(line, Reason::TooDeep, message));
        }
        let mut node = anchored.node.clone();
        node.line = line;
        Ok(node)
    }

    /// A node is complete: remember it for aliases and put it where it belongs.
    fn close(&mut self, node: Node, anchor: usize) -> Result<(), SyntaxError> {
        self.count(node.line)?;
        if anchor != 0 {
            let (nodes, bytes) = weight(&node);
            // The copy kept for aliases costs as much as one repetition; nested anchors would otherwise be quadratic.
            self.alias_nodes = self.alias_nodes.saturating_add(nodes);
            self.alias_bytes = self.alias_bytes.saturating_add(bytes);
            if self.alias_nodes > ALIAS_NODES_MAX || self.alias_bytes > ALIAS_BYTES_MAX {
                return Err(SyntaxError::new(node.line, Reason::AliasLimit, "anchors hold too much"));
            }
            self.anchors.insert(anchor, Anchored { node: node.clone(), nodes, bytes });
        }
        match self.stack.last_mut().map(|open| &mut open.content) {
            None => self.root = Some(node),
            Some(OpenContent::List(list)) => list.push(node),
            Some(OpenContent::Map { entries, key }) => match key.take() {
                Some((key, line)) => entries.push(Entry { key, line, node }),
                None => return Err(SyntaxError::new(node.line, Reason::InvalidYaml, "a value has no key")),
            },
        }
        Ok(())
    }
}

fn check_plain_key(text: &str, line: u32) -> Result<(), SyntaxError> {
    if text == "<<" {
        let mut error = SyntaxError::new(line, Reason::InvalidYaml, "<< (merge) is not part of YAML 1.2");
        error.help = Some("write the fields out, or use an alias for the whole value".to_owned());
        return Err(error);
    }
    match scalar::plain(text) {
        Scalar::Null => Err(SyntaxError::new(line, Reason::InvalidYaml, "a key is empty")),
        _ => Ok(()),
    }
}

fn check_collection_tag(tag: Option<&Tag>, expected: &str, line: u32) -> Result<(), SyntaxError> {
    match tag {
        None => Ok(()),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == expected => Ok(()),
        Some(tag) => Err(SyntaxError::new(line, Reason::InvalidYaml, unsupported_tag(tag))),
    }
}

fn unsupported_tag(tag: &Tag) -> String {
    format!("has the tag {}, which is not supported", quote(&format!("{}{}", tag.handle, tag.suffix)))
}

/// Nodes and text bytes of a tree.
fn weight(node: &Node) -> (usize, usize) {
    let mut open = vec![node];
    let (mut nodes, mut bytes) = (0, 0);
    while let Some(node) = open.pop() {
        nodes += 1;
        match &node.value {
            Content::Text(text) => bytes += text.len(),
            Content::List(list) => open.extend(list),
            Content::Map(entries) => {
                bytes += entries.iter().map(|entry| entry.key.len()).sum::<usize>();
                open.extend(entries.iter().map(|entry| &entry.node));
            }
            _ => {}
        }
    }
    (nodes, bytes)
}

/// Levels of lists and mappings in a tree; bounded, as trees are.
fn depth(node: &Node) -> usize {
    match &node.value {
        Content::List(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Content::Map(entries) => 1 + entries.iter().map(|entry| depth(&entry.node)).max().unwrap_or(0),
        _ => 0,
    }
}

fn scalar_content(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Content {
    let core = tag.filter(|tag| tag.is_yaml_core_schema()).map(|tag| tag.suffix.as_str());
    match (core, tag) {
        (Some("str"), _) => return Content::Text(text.to_owned()),
        (Some("int" | "float" | "bool" | "null"), _) | (None, None) => {}
        (None, Some(tag)) if tag.handle == "!" && tag.suffix.is_empty() => return Content::Text(text.to_owned()),
        (_, Some(tag)) => {
            return Content::Invalid { reason: Reason::InvalidYaml, message: unsupported_tag(tag) };
        }
        (Some(_), None) => {}
    }
    if !matches!(style, ScalarStyle::Plain) && core.is_none() {
        return Content::Text(text.to_owned());
    }
    match scalar::plain(text) {
        Scalar::Null => Content::Null,
        Scalar::Bool(value) => Content::Bool(value),
        Scalar::Number(number) => Content::Number(number),
        Scalar::Text => Content::Text(text.to_owned()),
        Scalar::Unheld(why) => Content::Invalid { reason: Reason::InvalidNumber, message: format!("{text} {why}") },
    }
}
