//! Arguments to templates: what is known is written out, outputs become references, and what differs from task to task
//! becomes a slot.

use serde_json::{Map, Value};

use super::{
    expr::{Expr, ExprError, Gather, Path, Root, Scope, Text},
    flow::{Flow, FlowStep},
    mentions::{Mention, mentions},
    node::{Node, below},
    objects::Target,
    template::{Reference, Template},
};
use api::problem::Problem;
use api::reason::Reason;
use api::step::IfExists;
use wire::PathPart;

/// A value that is made for each task.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// A variable of `map`, or a place in it.
    Var { var: u32, path: Vec<PathPart> },
    /// An expression over items or results.
    Text(Text),
    /// An object that the step reads, by its number: its path needs items or results.
    Object(u32),
    /// Where the output is kept: likewise.
    Place,
    /// Whether what is there is taken.
    Taken,
}

/// Writes the arguments of one step.
pub(super) struct Encoder<'a> {
    flow: &'a Flow,
    lengths: &'a [Option<u32>],
    scope: &'a Scope<'a>,
    problems: &'a mut Vec<Problem>,
    template: Template,
    slots: Vec<Slot>,
}

impl<'a> Encoder<'a> {
    pub fn new(
        flow: &'a Flow,
        lengths: &'a [Option<u32>],
        scope: &'a Scope<'a>,
        problems: &'a mut Vec<Problem>,
    ) -> Self {
        Self { flow, lengths, scope, problems, template: Template::default(), slots: Vec::new() }
    }

    /// The template and what its slots hold.
    pub fn finish(self) -> (Template, Vec<Slot>) {
        (self.template, self.slots)
    }

    /// Writes `[positional, keyword]`.
    pub fn arguments(&mut self, step: &FlowStep) {
        let at = format!("{}.args", step.at);
        let args = &step.args;
        self.template.array(2);
        self.template.array(args.positional.len());
        for (i, node) in args.positional.iter().enumerate() {
            self.node(node, step, &format!("{at}[{i}]"));
        }
        self.template.map(args.keyword.len() + args.passed.len() + step.inputs.len());
        for (name, node) in &args.keyword {
            self.template.text(name);
            self.node(node, step, &below(&at, name));
        }
        for var in &args.passed {
            if let Some(name) = step.map.as_ref().and_then(|vars| vars.get(*var as usize)).map(|var| &var.name) {
                self.template.text(name);
                self.slot(Slot::Var { var: *var, path: Vec::new() });
            }
        }
        for (number, input) in (0..).zip(&step.inputs) {
            self.template.text(&input.name);
            self.template.reference(&Reference::Object(number));
        }
    }

    /// A template of its own with the objects that the step reads; empty without any.
    pub fn inputs(&mut self, step: &FlowStep) -> Template {
        if step.inputs.is_empty() {
            return Template::default();
        }
        self.apart(|own| {
            own.template.array(step.inputs.len());
            for (number, input) in (0..).zip(&step.inputs) {
                own.template.array(2);
                own.template.text(&input.name);
                if is_dynamic(&input.path) {
                    own.slot(Slot::Object(number));
                    continue;
                }
                let path = own.known(&input.path, &input.at);
                match path.map(|path| input.object(&path)) {
                    Some(Ok((path, serializer))) => own.template.object(&path, serializer),
                    Some(Err(wrong)) => own.problems.push(wrong.problem(&input.at)),
                    None => {}
                }
            }
        })
    }

    /// A template of its own with the place where the step keeps its output.
    pub fn place(&mut self, target: &Target) -> Template {
        self.apart(|own| {
            own.template.array(2);
            if is_dynamic(&target.path) {
                own.slot(Slot::Place);
            } else {
                let path = own.known(&target.path, &target.at);
                match path.map(|path| target.place(&path)) {
                    Some(Ok(path)) => own.template.text(&path),
                    Some(Err(wrong)) => own.problems.push(wrong.problem(&target.at)),
                    None => {}
                }
            }
            match target.if_exists {
                IfExists::Skip => own.slot(Slot::Taken),
                IfExists::Fail | IfExists::Replace => own.template.value(&Value::Bool(false)),
            }
        })
    }

    /// What `write` writes, in a template of its own; slots are shared.
    fn apart(&mut self, write: impl FnOnce(&mut Self)) -> Template {
        let other = std::mem::take(&mut self.template);
        write(self);
        std::mem::replace(&mut self.template, other)
    }

    /// The value of a text that needs neither items nor results.
    fn known(&mut self, text: &Text, at: &str) -> Option<Value> {
        match text.evaluate(self.scope) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.push(Problem::new(error.reason(), at, error.to_string()));
                None
            }
        }
    }

    fn node(&mut self, node: &Node, step: &FlowStep, at: &str) {
        match node {
            Node::Literal(value) => self.template.value(value),
            Node::List(list) => {
                self.template.array(list.len());
                for (i, entry) in list.iter().enumerate() {
                    self.node(entry, step, &format!("{at}[{i}]"));
                }
            }
            Node::Map(map) => {
                self.template.map(map.len());
                for (key, entry) in map {
                    self.template.text(key);
                    self.node(entry, step, &below(at, key));
                }
            }
            Node::Text(text) => self.text(text, step, at),
        }
    }

    fn text(&mut self, text: &Text, step: &FlowStep, at: &str) {
        if let Text::Whole { expr: Expr::Path(path), .. } = text {
            match &path.root {
                Root::Output { step: name, gather } => return self.output(name, *gather, &path.keys, at),
                Root::Item => return self.item(path, step),
                _ => {}
            }
        }
        if is_dynamic(text) {
            return self.slot(Slot::Text(text.clone()));
        }
        if let Some(value) = self.known(text, at) {
            self.template.value(&value);
        }
    }

    fn output(&mut self, name: &str, gather: Gather, keys: &[PathPart], at: &str) {
        let Some(target) = self.flow.index.get(name).copied() else { return };
        if self.flow.step(target).map.is_none() {
            return self.template.reference(&Reference::Output { step: target, item: -1, path: keys.to_vec() });
        }
        match keys {
            [PathPart::Index(item), path @ ..] => {
                if let Some(length) = self.lengths[target.0 as usize]
                    && *item >= length
                {
                    let message = format!("steps.{name}.output has {length} entries, no index {item}");
                    self.problems.push(Problem::new(Reason::InvalidExpression, at, message));
                }
                self.template.reference(&Reference::Output {
                    step: target,
                    item: i64::from(*item),
                    path: path.to_vec(),
                });
            }
            _ => self.template.reference(&Reference::All { step: target, gather }),
        }
    }

    fn item(&mut self, path: &Path, step: &FlowStep) {
        let vars = step.map.as_deref().unwrap_or_default();
        match &path.keys[..] {
            [PathPart::Key(name), path @ ..] => {
                let Some(var) = vars.iter().position(|var| var.name == *name) else { return };
                self.slot(Slot::Var { var: var as u32, path: path.to_vec() });
            }
            _ => {
                self.template.map(vars.len());
                for (i, var) in vars.iter().enumerate() {
                    self.template.text(&var.name);
                    self.slot(Slot::Var { var: i as u32, path: Vec::new() });
                }
            }
        }
    }

    fn slot(&mut self, slot: Slot) {
        self.template.reference(&Reference::Slot(self.slots.len() as u32));
        self.slots.push(slot);
    }
}

/// Whether `text` needs items or results.
fn is_dynamic(text: &Text) -> bool {
    text.expressions().any(|(expr, column)| {
        mentions(expr, column).iter().any(|(mention, _)| matches!(mention, Mention::Item(_) | Mention::Result(_)))
    })
}

/// The value of `node` from `scope` alone.
pub(super) fn node_value(node: &Node, scope: &Scope<'_>) -> Result<Value, ExprError> {
    match node {
        Node::Literal(value) => Ok(value.clone()),
        Node::Text(text) => text.evaluate(scope),
        Node::List(list) => {
            list.iter().map(|entry| node_value(entry, scope)).collect::<Result<_, _>>().map(Value::Array)
        }
        Node::Map(map) => map
            .iter()
            .map(|(key, entry)| Ok((key.clone(), node_value(entry, scope)?)))
            .collect::<Result<Map<_, _>, _>>()
            .map(Value::Object),
    }
}
