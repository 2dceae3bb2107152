//! Writes the few pickles that `run_function` wants: constants, and calls of the standard library's functions.
//!
//! There is no reader: nothing that a peer sends is ever unpickled. The output is protocol 4, readable by every
//! Python since 3.4, and independent of the Python version.

use std::collections::HashMap;

/// A pickle whose loading runs `source` as a module body and gives the object called `want` in it.
///
/// Uses only `builtins`, `importlib` and `operator`, so it loads on any peer.
pub fn from_source(source: &str, want: &str, filename: &str) -> Vec<u8> {
    let mut w = Writer::new();
    // namespace = {"__name__": ..., "__builtins__": import_module("builtins")}, kept in the memo.
    // exec(compile(source, filename, "exec"), namespace); then operator.getitem(namespace, want)
    w.global("builtins", "exec");
    w.global("builtins", "compile");
    w.text(source);
    w.text(filename);
    w.text("exec");
    w.op(TUPLE3);
    w.op(REDUCE);
    w.op(EMPTY_DICT);
    w.op(MARK);
    w.text("__name__");
    w.text("daskade_boot");
    w.text("__builtins__");
    w.global("importlib", "import_module");
    w.text("builtins");
    w.op(TUPLE1);
    w.op(REDUCE);
    w.memoize();
    w.op(SETITEMS);
    let namespace = w.memoize();
    w.op(TUPLE2);
    w.op(REDUCE);
    w.op(POP);
    w.global("operator", "getitem");
    w.recall(namespace);
    w.text(want);
    w.op(TUPLE2);
    w.op(REDUCE);
    w.finish()
}

/// A pickled reference to a function of a module that the peer can import.
pub fn function(module: &str, qualified_name: &str) -> Vec<u8> {
    let mut w = Writer::new();
    w.global(module, qualified_name);
    w.finish()
}

/// A constant argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Constant<'a> {
    /// `str`.
    Text(&'a str),
    /// `bytes`.
    Bytes(&'a [u8]),
}

/// A pickled tuple of constants: the positional arguments.
pub fn arguments(items: &[Constant<'_>]) -> Vec<u8> {
    let mut w = Writer::new();
    if items.is_empty() {
        w.op(EMPTY_TUPLE);
    } else {
        w.op(MARK);
        for item in items {
            match item {
                Constant::Text(text) => w.text(text),
                Constant::Bytes(bytes) => w.bytes(bytes),
            }
        }
        w.op(TUPLE);
    }
    w.finish()
}

/// A pickled empty dict: no keyword arguments.
pub fn no_keywords() -> Vec<u8> {
    let mut w = Writer::new();
    w.op(EMPTY_DICT);
    w.finish()
}

const MARK: u8 = b'(';
const TUPLE: u8 = b't';
const EMPTY_TUPLE: u8 = b')';
const TUPLE1: u8 = 0x85;
const TUPLE2: u8 = 0x86;
const TUPLE3: u8 = 0x87;
const EMPTY_DICT: u8 = b'}';
const SETITEMS: u8 = b'u';
const REDUCE: u8 = b'R';
const POP: u8 = b'0';
const MEMOIZE: u8 = 0x94;
const STACK_GLOBAL: u8 = 0x93;
const SHORT_TEXT: u8 = 0x8c;
const TEXT: u8 = b'X';
const LONG_TEXT: u8 = 0x8d;
const SHORT_BYTES: u8 = b'C';
const BYTES: u8 = b'B';
const LONG_BYTES: u8 = 0x8e;
const GET_SHORT: u8 = b'h';
const GET: u8 = b'j';
const STOP: u8 = b'.';

struct Writer {
    out: Vec<u8>,
    memo: u32,
    texts: HashMap<String, u32>,
    globals: HashMap<(String, String), u32>,
}

impl Writer {
    fn new() -> Writer {
        Writer { out: vec![0x80, 4], memo: 0, texts: HashMap::new(), globals: HashMap::new() }
    }

    fn op(&mut self, code: u8) {
        self.out.push(code);
    }

    /// Remembers the top of the stack; the index is the count of those before.
    fn memoize(&mut self) -> u32 {
        self.op(MEMOIZE);
        self.memo += 1;
        self.memo - 1
    }

    fn recall(&mut self, index: u32) {
        match u8::try_from(index) {
            Ok(short) => self.out.extend_from_slice(&[GET_SHORT, short]),
            Err(_) => {
                self.op(GET);
                self.out.extend_from_slice(&index.to_le_bytes());
            }
        }
    }

    fn text(&mut self, text: &str) {
        if let Some(index) = self.texts.get(text) {
            return self.recall(*index);
        }
        self.sized([SHORT_TEXT, TEXT, LONG_TEXT], text.as_bytes());
        let index = self.memoize();
        self.texts.insert(text.to_owned(), index);
    }

    /// Not remembered: nothing is sent twice.
    fn bytes(&mut self, bytes: &[u8]) {
        self.sized([SHORT_BYTES, BYTES, LONG_BYTES], bytes);
    }

    /// Bytes after their length in one, four or eight bytes, each with an opcode of its own.
    fn sized(&mut self, [short, long, huge]: [u8; 3], bytes: &[u8]) {
        let length = bytes.len();
        if let Ok(length) = u8::try_from(length) {
            self.out.extend_from_slice(&[short, length]);
        } else if let Ok(length) = u32::try_from(length) {
            self.op(long);
            self.out.extend_from_slice(&length.to_le_bytes());
        } else {
            self.op(huge);
            self.out.extend_from_slice(&(length as u64).to_le_bytes());
        }
        self.out.extend_from_slice(bytes);
    }

    fn global(&mut self, module: &str, name: &str) {
        let key = (module.to_owned(), name.to_owned());
        if let Some(index) = self.globals.get(&key) {
            return self.recall(*index);
        }
        self.text(module);
        self.text(name);
        self.op(STACK_GLOBAL);
        let index = self.memoize();
        self.globals.insert(key, index);
    }

    fn finish(mut self) -> Vec<u8> {
        self.op(STOP);
        self.out
    }
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
