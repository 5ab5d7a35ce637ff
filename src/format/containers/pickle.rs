//! Reads a pickle as PyTorch writes it, for the tensors that it would rebuild. It is a reader, not
//! an interpreter of Python: names of functions and classes are compared with a few known ones,
//! nothing is imported or called, and whatever is not part of a tensor is forgotten.
//!
//! Opcodes: <https://github.com/python/cpython/blob/main/Lib/pickletools.py>.

use std::rc::Rc;

/// The most values on the stack, in the memo, and marks. Lists and dictionaries keep none.
const MAX_VALUES: usize = 1 << 17;
/// The longest text that is kept, in bytes.
const MAX_TEXT: usize = 128;
/// The most values of a tuple that is kept, and how deep tuples nest.
const MAX_TUPLE: usize = 8;
const MAX_DEPTH: u8 = 3;

/// A tensor as a view of a storage.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct View {
    /// Its key in a dictionary, if it is in one.
    pub name: Option<Vec<u8>>,
    /// The key of the storage, which is the name of its entry.
    pub key: Vec<u8>,
    /// The name of the type of its elements, such as `HalfStorage` or `float16`.
    pub dtype: Vec<u8>,
    /// The first element in the storage.
    pub offset: u64,
    pub shape: Vec<u64>,
    /// The distance of neighbours in each dimension, in elements.
    pub strides: Vec<u64>,
}

/// As much of an object as tensors need.
#[derive(Clone)]
enum Value {
    /// Anything that cannot be part of a tensor.
    Other,
    Int(u64),
    Text(Rc<[u8]>),
    /// A function or class: its name without the module.
    Name(Rc<[u8]>),
    Tuple(Rc<[Value]>, u8),
    /// A storage: its key and the name of its type.
    Storage(Rc<[u8]>, Rc<[u8]>),
    /// A tensor: its number.
    Tensor(usize),
}

/// The reader of a pickle. Every step returns `None` where the pickle is malformed, or uses what
/// PyTorch does not.
struct Reader<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: Vec<Value>,
    views: Vec<View>,
}

/// The tensors of a pickle, as far as it can be read, and at most `most` of them.
pub(super) fn views(pickle: &[u8], most: usize) -> Vec<View> {
    let mut reader = Reader {
        rest: pickle,
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        views: Vec::new(),
    };
    while reader.views.len() < most && reader.step().is_some() {}
    reader.views
}

impl<'a> Reader<'a> {
    /// The next operation; `None` at the end.
    fn step(&mut self) -> Option<()> {
        let [op] = self.array()?;
        match op {
            // PROTO and FRAME.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'(' => (self.marks.len() < MAX_VALUES).then(|| self.marks.push(self.stack.len())),
            b'0' => self.pop().map(drop),
            b'1' => self.marked().map(drop),
            b'2' => self.stack.last().cloned().and_then(|top| self.push(top)),
            b'K' | b'M' | b'J' | 0x8a | b'I' | b'L' => self.int(op),
            b'X' | 0x8c | 0x8d | b'U' | b'T' | b'V' | b'S' => self.text(op),
            b'B' | b'C' | 0x8e | 0x96 | b'G' | b'F' | 0x8b => self.other(op),
            // NONE, NEWTRUE, NEWFALSE, EMPTY_LIST, EMPTY_DICT, EMPTY_SET.
            b'N' | 0x88 | 0x89 | b']' | b'}' | 0x8f => self.push(Value::Other),
            b')' => self.tuple(0),
            0x85 => self.tuple(1),
            0x86 => self.tuple(2),
            0x87 => self.tuple(3),
            b't' => {
                let at = self.marks.pop()?;
                self.tuple(self.stack.len().checked_sub(at)?)
            }
            // LIST, DICT, FROZENSET.
            b'l' | b'd' | 0x91 => self.marked().and_then(|()| self.push(Value::Other)),
            // APPENDS, SETITEMS, ADDITEMS leave what is below the mark; APPEND, SETITEM, BUILD.
            b'e' | 0x90 => self.marked(),
            b'u' => {
                let at = *self.marks.last()?;
                let items = self.stack.get(at..)?.as_chunks().0;
                items.iter().for_each(|[key, value]| name(&mut self.views, key, value));
                self.marked()
            }
            b'a' | b'b' => self.pop().map(drop),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                name(&mut self.views, &key, &value);
                Some(())
            }
            b'c' => {
                self.line()?;
                let name = self.line()?.into();
                self.push(Value::Name(name))
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(_)) => self.push(Value::Name(name)),
                _ => self.push(Value::Other),
            },
            b'Q' => self.pop().and_then(|id| self.push(storage(&id))),
            b'R' | 0x81 => self.call(),
            b'q' | b'r' | 0x94 | b'p' => self.memorize(op),
            b'h' | b'j' | b'g' => self.recall(op),
            _ => None,
        }
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(n)?;
        self.rest = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let len = self.rest.iter().position(|&byte| byte == b'\n')?;
        let line = self.take(len + 1)?;
        Some(&line[..len])
    }

    /// A length of one, four or eight bytes, as the opcode says.
    fn length(&mut self, op: u8) -> Option<usize> {
        match op {
            b'U' | 0x8c | b'C' | 0x8a => self.array().map(|[n]: [u8; 1]| n.into()),
            0x8d | 0x8e | 0x96 => usize::try_from(u64::from_le_bytes(self.array()?)).ok(),
            _ => usize::try_from(u32::from_le_bytes(self.array()?)).ok(),
        }
    }

    fn push(&mut self, value: Value) -> Option<()> {
        (self.stack.len() < MAX_VALUES).then(|| self.stack.push(value))
    }

    fn pop(&mut self) -> Option<Value> {
        // Nothing is taken from below a mark.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() > floor { self.stack.pop() } else { None }
    }

    /// Drop everything above the last mark.
    fn marked(&mut self) -> Option<()> {
        let at = self.marks.pop()?;
        self.stack.truncate(at);
        Some(())
    }

    fn int(&mut self, op: u8) -> Option<()> {
        let value = match op {
            b'K' => self.array().map(|[n]: [u8; 1]| u64::from(n)),
            b'M' => self.array().map(|n| u16::from_le_bytes(n).into()),
            // Negative numbers are not part of a tensor.
            b'J' => return self.array().and_then(|n| self.push(int(i32::from_le_bytes(n).into()))),
            0x8a => {
                let len = self.length(op)?;
                let bytes = self.take(len)?;
                let mut wide = [0; 8];
                match wide.get_mut(..bytes.len()) {
                    Some(low) => low.copy_from_slice(bytes),
                    None => return self.push(Value::Other),
                }
                Some(u64::from_le_bytes(wide))
            }
            _ => {
                let line = std::str::from_utf8(self.line()?).ok()?.trim_end_matches('L');
                return self.push(line.parse().map_or(Value::Other, int));
            }
        };
        self.push(Value::Int(value?))
    }

    fn text(&mut self, op: u8) -> Option<()> {
        let bytes = match op {
            b'V' | b'S' => self.line()?,
            _ => {
                let len = self.length(op)?;
                self.take(len)?
            }
        };
        let is_short = bytes.len() <= MAX_TEXT;
        self.push(if is_short { Value::Text(bytes.into()) } else { Value::Other })
    }

    /// Bytes, floats and very long numbers.
    fn other(&mut self, op: u8) -> Option<()> {
        match op {
            b'G' => self.take(8)?,
            b'F' => self.line()?,
            _ => {
                let len = self.length(op)?;
                self.take(len)?
            }
        };
        self.push(Value::Other)
    }

    /// A tuple of the last `n` values.
    fn tuple(&mut self, n: usize) -> Option<()> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let at = self.stack.len().checked_sub(n).filter(|&at| at >= floor)?;
        let values = self.stack.split_off(at);
        let depth = values.iter().map(|v| if let Value::Tuple(_, d) = v { d + 1 } else { 0 });
        let depth = depth.max().unwrap_or(0);
        let fits = n <= MAX_TUPLE && depth <= MAX_DEPTH;
        self.push(if fits { Value::Tuple(values.into(), depth) } else { Value::Other })
    }

    /// What a function makes of its arguments: a tensor if the function rebuilds one.
    fn call(&mut self) -> Option<()> {
        let (Some(arguments), Some(function)) = (self.pop(), self.pop()) else { return None };
        let mut made = Value::Other;
        if let (Value::Name(name), Value::Tuple(arguments, _)) = (&function, &arguments) {
            match (view(name, arguments), &**arguments) {
                (Some(view), _) => {
                    made = Value::Tensor(self.views.len());
                    self.views.push(view);
                }
                // A parameter is a tensor.
                (None, [Value::Tensor(number), ..]) => made = Value::Tensor(*number),
                _ => {}
            }
        }
        self.push(made)
    }

    fn memorize(&mut self, op: u8) -> Option<()> {
        let at = if op == 0x94 { self.memo.len() } else { self.reference(op)? };
        if at >= MAX_VALUES {
            return None;
        }
        if at >= self.memo.len() {
            self.memo.resize(at + 1, Value::Other);
        }
        self.memo[at] = self.stack.last()?.clone();
        Some(())
    }

    fn recall(&mut self, op: u8) -> Option<()> {
        let at = self.reference(op)?;
        let value = self.memo.get(at)?.clone();
        self.push(value)
    }

    /// A place in the memo.
    fn reference(&mut self, op: u8) -> Option<usize> {
        match op {
            b'q' | b'h' => self.array().map(|[n]: [u8; 1]| n.into()),
            b'r' | b'j' => usize::try_from(u32::from_le_bytes(self.array()?)).ok(),
            _ => std::str::from_utf8(self.line()?).ok()?.parse().ok(),
        }
    }
}

/// A tensor of a dictionary gets its key as its name.
fn name(views: &mut [View], key: &Value, value: &Value) {
    if let (Value::Text(key), Value::Tensor(number)) = (key, value)
        && let Some(view) = views.get_mut(*number)
    {
        view.name.get_or_insert_with(|| key.to_vec());
    }
}

fn int(n: i64) -> Value {
    u64::try_from(n).map_or(Value::Other, Value::Int)
}

/// The storage of a persistent id: `('storage', class, key, location, elements)`.
fn storage(id: &Value) -> Value {
    if let Value::Tuple(parts, _) = id
        && let [Value::Text(tag), Value::Name(class), Value::Text(key), ..] = &**parts
        && **tag == *b"storage"
    {
        return Value::Storage(Rc::clone(key), Rc::clone(class));
    }
    Value::Other
}

/// The view that a call of `_rebuild_tensor_v2` or `_rebuild_tensor_v3` describes.
fn view(function: &[u8], arguments: &[Value]) -> Option<View> {
    let [Value::Storage(key, class), Value::Int(offset), shape, strides, rest @ ..] = arguments
    else {
        return None;
    };
    let dtype = match (function, rest) {
        (b"_rebuild_tensor_v2" | b"_rebuild_tensor", _) => class,
        (b"_rebuild_tensor_v3", [_, _, Value::Name(dtype), ..]) => dtype,
        _ => return None,
    };
    Some(View {
        name: None,
        key: key.to_vec(),
        dtype: dtype.to_vec(),
        offset: *offset,
        shape: ints(shape)?,
        strides: ints(strides)?,
    })
}

fn ints(tuple: &Value) -> Option<Vec<u64>> {
    let Value::Tuple(values, _) = tuple else { return None };
    values.iter().map(|v| if let Value::Int(n) = v { Some(*n) } else { None }).collect()
}
