//! The virtual machine of pickles: a stack machine that builds values and, unlike Python's, calls
//! nothing.
//!
//! It supports what `torch.save` writes: protocol 2, and protocols up to 5 for plain containers. A
//! name outside the table of [`globals`] becomes a [`Value::Opaque`], and so does every object that
//! is built with it. Each instruction adds at most one value, and a length must not exceed the
//! remaining bytes, so that memory is proportional to the length of the pickle.

use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};

use super::globals::{self, Global};
use super::value::{ObjectId, Storage, StorageView, Value};

/// Maximum number of dimensions of a tensor in libtorch.
const MAX_DIMENSIONS: usize = 64;

/// The state of the virtual machine.
pub(super) struct PickleVm<'a> {
    bytes: &'a [u8],
    /// Offset of the next byte.
    position: usize,
    values: Vec<Value>,
    stack: Vec<ObjectId>,
    /// Height of the stack at each open mark.
    marks: Vec<usize>,
    memo: HashMap<u32, ObjectId>,
    first_opaque: Option<Rc<str>>,
}

impl PickleVm<'_> {
    /// Runs the machine. Returns all values, the index of the outermost value, and the first
    /// unsupported name.
    pub(super) fn run(bytes: &[u8]) -> Result<(Vec<Value>, ObjectId, Option<Rc<str>>)> {
        let mut machine = PickleVm {
            bytes,
            position: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            first_opaque: None,
        };
        loop {
            let position = machine.position;
            let step = machine.step().with_context(|| format!("its pickle is rejected at byte {position}"))?;
            if let Some(root) = step {
                return Ok((machine.values, root, machine.first_opaque));
            }
        }
    }

    fn take(&mut self, count: u64) -> Result<&[u8]> {
        let remaining = self.bytes.len() - self.position;
        ensure!(count <= remaining as u64, "it claims {count} bytes, but {remaining} remain");
        let start = self.position;
        self.position += count as usize;
        Ok(&self.bytes[start..self.position])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.take(N as u64)?.try_into()?)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn add(&mut self, value: Value) -> Result<ObjectId> {
        let id = ObjectId::try_from(self.values.len()).context("it has too many values")?;
        self.values.push(value);
        Ok(id)
    }

    fn push(&mut self, value: Value) -> Result<()> {
        let id = self.add(value)?;
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Result<ObjectId> {
        ensure!(self.stack.len() > self.marks.last().copied().unwrap_or(0), "its stack is empty");
        self.stack.pop().context("its stack is empty")
    }

    fn top(&self) -> Result<ObjectId> {
        ensure!(self.stack.len() > self.marks.last().copied().unwrap_or(0), "its stack is empty");
        self.stack.last().copied().context("its stack is empty")
    }

    fn pop_mark(&mut self) -> Result<Vec<ObjectId>> {
        let mark = self.marks.pop().context("it has no open mark")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_pairs(&mut self) -> Result<Vec<(ObjectId, ObjectId)>> {
        let items = self.pop_mark()?;
        ensure!(items.len() % 2 == 0, "a dictionary has a key without a value");
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn value(&self, id: ObjectId) -> &Value {
        &self.values[id as usize]
    }

    fn text(&mut self, length: u64) -> Result<()> {
        // Python can write lone surrogates, which are not valid UTF-8.
        let text = String::from_utf8_lossy(self.take(length)?).into();
        self.push(Value::Text(text))
    }

    fn skip(&mut self, length: u64, what: &'static str) -> Result<()> {
        self.take(length)?;
        self.push(Value::Other(what))
    }

    /// An integer of any length in little-endian two's complement.
    fn long(&mut self, length: u64) -> Result<()> {
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            return self.push(Value::Other("an integer of more than 64 bits"));
        }
        let negative = bytes.last().is_some_and(|&b| b >= 0x80);
        let mut extended = if negative { [0xff; 8] } else { [0; 8] };
        extended[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(extended)))
    }

    fn tuple(&mut self, length: usize) -> Result<()> {
        let mut items = vec![0; length];
        for slot in items.iter_mut().rev() {
            *slot = self.pop()?;
        }
        self.push(Value::Tuple(items))
    }

    fn extend_list(&mut self, items: Vec<ObjectId>) -> Result<()> {
        let list = self.top()?;
        match &mut self.values[list as usize] {
            Value::List(list) => list.extend(items),
            Value::Opaque(_) => {}
            _ => bail!("it appends to a value that is not a list"),
        }
        Ok(())
    }

    fn extend_dict(&mut self, pairs: Vec<(ObjectId, ObjectId)>) -> Result<()> {
        let dict = self.top()?;
        match &mut self.values[dict as usize] {
            Value::Dict(dict) => dict.extend(pairs),
            Value::Opaque(_) => {}
            _ => bail!("it sets items of a value that is not a dictionary"),
        }
        Ok(())
    }

    fn memoize(&mut self, index: u32) -> Result<()> {
        let id = self.top()?;
        self.memo.insert(index, id);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let id = *self.memo.get(&index).with_context(|| format!("it reads memo {index}, which does not exist"))?;
        self.stack.push(id);
        Ok(())
    }

    /// The text up to the next line feed.
    fn line(&mut self) -> Result<String> {
        let rest = &self.bytes[self.position..];
        let length = rest.iter().position(|&b| b == b'\n').context("a name has no end")?;
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.position += length + 1;
        Ok(line)
    }

    fn global(&mut self, module: &str, name: &str) -> Result<()> {
        let value = match globals::resolve(module, name)? {
            Some(global) => Value::Global(global),
            None => {
                let label: Rc<str> = globals::label(module, name).into();
                self.first_opaque.get_or_insert_with(|| label.clone());
                Value::Opaque(label)
            }
        };
        self.push(value)
    }

    /// Builds the result of `callable(*arguments)` for the callables of the table. Calls nothing.
    fn reduce(&mut self, callable: ObjectId, arguments: ObjectId) -> Result<()> {
        let global = match self.value(callable) {
            Value::Global(global) => *global,
            Value::Opaque(name) => {
                let name = name.clone();
                return self.push(Value::Opaque(name));
            }
            _ => bail!("it calls a value that is not a function"),
        };
        let Value::Tuple(items) = self.value(arguments) else { bail!("it calls {global:?} without a tuple") };
        match (global, items.as_slice()) {
            (Global::OrderedDict, []) => self.push(Value::Dict(Vec::new())),
            (Global::Size, &[sizes]) | (Global::RebuildParameter, &[sizes, ..]) => {
                self.stack.push(sizes);
                Ok(())
            }
            (Global::RebuildTensor, &[storage, offset, size, stride, ..]) => {
                let tensor = self.tensor(storage, offset, size, stride)?;
                self.push(tensor)
            }
            _ => bail!("it calls {global:?} with {} arguments", items.len()),
        }
    }

    fn tensor(&self, storage: ObjectId, offset: ObjectId, size: ObjectId, stride: ObjectId) -> Result<Value> {
        let storage = match self.value(storage) {
            Value::Storage(storage) => (**storage).clone(),
            Value::Opaque(name) => return Ok(Value::Opaque(name.clone())),
            _ => bail!("a tensor is built from a value that is not a storage"),
        };
        let Value::Int(offset) = *self.value(offset) else { bail!("the offset of a tensor is not an integer") };
        let integers = |id: ObjectId| -> Result<Vec<i64>> {
            let Value::Tuple(items) = self.value(id) else { bail!("the shape of a tensor is not a tuple") };
            ensure!(items.len() <= MAX_DIMENSIONS, "a tensor has {} dimensions", items.len());
            let integer = |&id: &ObjectId| match *self.value(id) {
                Value::Int(n) => Ok(n),
                _ => bail!("the shape of a tensor contains a value that is not an integer"),
            };
            items.iter().map(integer).collect()
        };
        Ok(Value::Tensor(Box::new(StorageView { storage, offset, size: integers(size)?, stride: integers(stride)? })))
    }

    /// Resolves `('storage', type, key, location, length)`, the only kind of persistent id that
    /// `torch.save` writes. The location, a device, is ignored.
    fn persistent(&mut self, id: ObjectId) -> Result<()> {
        let Value::Tuple(items) = self.value(id) else { bail!("a persistent id is not a tuple") };
        let &[tag, kind, key, _location, length] = items.as_slice() else {
            bail!("a persistent id has {} parts, not the 5 of torch.save", items.len())
        };
        let storage = match (self.value(tag), self.value(kind), self.value(key), self.value(length)) {
            (Value::Text(tag), Value::Global(Global::Storage(kind)), Value::Text(key), &Value::Int(length))
                if **tag == *"storage" =>
            {
                Value::Storage(Box::new(Storage { kind: *kind, key: key.clone(), length }))
            }
            (_, Value::Opaque(name), _, _) => Value::Opaque(name.clone()),
            _ => bail!("a persistent id is not of the form that torch.save writes"),
        };
        self.push(storage)
    }

    /// Executes one instruction. Returns the outermost value at the last instruction.
    fn step(&mut self) -> Result<Option<ObjectId>> {
        match self.byte()? {
            b'.' => return self.pop().map(Some),
            // Protocol and frame headers have no effect.
            0x80 => drop(self.byte()?),
            0x95 => drop(self.u64()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => {
                // In Python, POP can remove a mark.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                } else {
                    self.pop()?;
                }
            }
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let id = self.top()?;
                self.stack.push(id);
            }
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let n = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            b'K' => {
                let n = self.byte()?;
                self.push(Value::Int(n.into()))?;
            }
            b'M' => {
                let n = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(n.into()))?;
            }
            0x8a => {
                let length = self.byte()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = self.u32()?;
                self.long(length.into())?;
            }
            b'G' => {
                let x = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(x))?;
            }
            0x8c | b'U' => {
                let length = self.byte()?;
                self.text(length.into())?;
            }
            b'X' | b'T' => {
                let length = self.u32()?;
                self.text(length.into())?;
            }
            0x8d => {
                let length = self.u64()?;
                self.text(length)?;
            }
            b'C' => {
                let length = self.byte()?;
                self.skip(length.into(), "bytes")?;
            }
            b'B' => {
                let length = self.u32()?;
                self.skip(length.into(), "bytes")?;
            }
            0x8e | 0x96 => {
                let length = self.u64()?;
                self.skip(length, "bytes")?;
            }
            b'}' => self.push(Value::Dict(Vec::new()))?,
            b']' | 0x8f => self.push(Value::List(Vec::new()))?,
            b')' => self.tuple(0)?,
            0x85 => self.tuple(1)?,
            0x86 => self.tuple(2)?,
            0x87 => self.tuple(3)?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Value::Tuple(items))?;
            }
            b'l' | 0x91 => {
                let items = self.pop_mark()?;
                self.push(Value::List(items))?;
            }
            b'd' => {
                let pairs = self.pop_pairs()?;
                self.push(Value::Dict(pairs))?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.extend_dict(vec![(key, value)])?;
            }
            b'u' => {
                let pairs = self.pop_pairs()?;
                self.extend_dict(pairs)?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend_list(items)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(name), Value::Text(module)) = (self.value(name), self.value(module)) else {
                    bail!("a name is not a text");
                };
                let (module, name) = (module.clone(), name.clone());
                self.global(&module, &name)?;
            }
            // A call, or the construction of an object, which this machine treats alike.
            b'R' | 0x81 => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, arguments)?;
            }
            0x92 => {
                let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.reduce(class, arguments)?;
            }
            // An object's attributes: state dictionaries carry `_metadata`, never needed.
            b'b' => {
                self.pop()?;
                let object = self.top()?;
                ensure!(
                    matches!(self.value(object), Value::Dict(_) | Value::Tensor(_) | Value::Opaque(_)),
                    "it sets attributes of a value that has none"
                );
            }
            b'Q' => {
                let id = self.pop()?;
                self.persistent(id)?;
            }
            b'q' => {
                let index = self.byte()?;
                self.memoize(index.into())?;
            }
            b'r' => {
                let index = self.u32()?;
                self.memoize(index)?;
            }
            0x94 => self.memoize(u32::try_from(self.memo.len())?)?,
            b'h' => {
                let index = self.byte()?;
                self.recall(index.into())?;
            }
            b'j' => {
                let index = self.u32()?;
                self.recall(index)?;
            }
            other => bail!("instruction 0x{other:02x} is not one that torch.save writes"),
        }
        Ok(None)
    }
}
