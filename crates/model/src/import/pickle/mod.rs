//! What a pickle holds: plain containers, descriptions of tensors, and labels in place of
//! everything else.
//!
//! All values lie in one vector and refer to one another by number: cycles and deep
//! nesting cost nothing, and neither building nor dropping them recurses.

pub(crate) mod globals;
pub(crate) mod vm;

use std::rc::Rc;

use anyhow::Result;
use tch::Kind;

use globals::Global;
use vm::PickleVm;

/// A value's place in [`Pickle`].
pub(super) type ObjectId = u32;

/// What a pickle is made of.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    /// Something that is never needed: bytes, an integer beyond 64 bits.
    Other(&'static str),
    Tuple(Vec<ObjectId>),
    /// A list or a set.
    List(Vec<ObjectId>),
    /// In the order written; of equal keys the last one counts.
    Dict(Vec<(ObjectId, ObjectId)>),
    /// The bytes behind tensors.
    Storage(Box<Storage>),
    Tensor(Box<StorageView>),
    Global(Global),
    /// Something made by a name that means nothing here: `module.name`.
    Opaque(Rc<str>),
}

/// A storage: `length` values of `kind`, in the archive under `key`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Storage {
    pub(super) kind: Kind,
    pub(super) key: Rc<str>,
    pub(super) length: i64,
}

/// A tensor: a strided view of a storage, in values. Its numbers are the file's: whoever
/// reads through it checks them first.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StorageView {
    pub(super) storage: Storage,
    pub(super) offset: i64,
    pub(super) size: Vec<i64>,
    pub(super) stride: Vec<i64>,
}

/// Everything that one pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    root: ObjectId,
    first_opaque: Option<Rc<str>>,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// # Errors
    /// Where the pickle is broken, uses an instruction that `torch.save` does not write, or
    /// names what runs code.
    pub(super) fn parse(bytes: &[u8]) -> Result<Pickle> {
        let (values, root, first_opaque) = PickleVm::run(bytes)?;
        Ok(Pickle { values, root, first_opaque })
    }

    /// The whole.
    pub(super) fn root(&self) -> ObjectId {
        self.root
    }

    /// One value.
    pub(super) fn value(&self, id: ObjectId) -> &Value {
        &self.values[id as usize]
    }

    /// The first name that means nothing here, wherever it stands.
    pub(super) fn first_opaque(&self) -> Option<&str> {
        self.first_opaque.as_deref()
    }

    /// Entries with a text as key; none when the value is no dictionary.
    pub(super) fn entries(&self, id: ObjectId) -> impl Iterator<Item = (&str, ObjectId)> {
        let pairs: &[(ObjectId, ObjectId)] = match self.value(id) {
            Value::Dict(pairs) => pairs,
            _ => &[],
        };
        pairs.iter().filter_map(|&(key, value)| match self.value(key) {
            Value::Text(text) => Some((&**text, value)),
            _ => None,
        })
    }

    /// The entry of a dictionary.
    pub(super) fn get(&self, id: ObjectId, key: &str) -> Option<ObjectId> {
        self.entries(id).filter(|(name, _)| *name == key).last().map(|(_, value)| value)
    }

    /// What a value is, for an error.
    pub(super) fn describe(&self, id: ObjectId) -> String {
        match self.value(id) {
            Value::None => "None".to_owned(),
            Value::Bool(_) => "a truth value".to_owned(),
            Value::Int(_) => "an integer".to_owned(),
            Value::Float(_) => "a float".to_owned(),
            Value::Text(_) => "a text".to_owned(),
            Value::Other(what) => (*what).to_owned(),
            Value::Tuple(_) => "a tuple".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Dict(_) => "a dictionary".to_owned(),
            Value::Storage(_) => "a storage".to_owned(),
            Value::Tensor(_) => "a tensor".to_owned(),
            Value::Global(_) => "a type of torch's".to_owned(),
            Value::Opaque(name) => format!("an object of {name}, which is not read here"),
        }
    }
}
