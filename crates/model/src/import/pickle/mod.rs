//! Parsing of pickles into plain containers and descriptions of tensors. All other objects become
//! labels, and nothing is executed.

mod globals;
mod value;
mod vm;

use std::rc::Rc;

use anyhow::Result;

use vm::PickleVm;

pub(in crate::import) use value::{ObjectId, Storage, StorageView, Value};

/// The contents of a pickle.
#[derive(Debug)]
pub(in crate::import) struct Pickle {
    values: Vec<Value>,
    root: ObjectId,
    first_opaque: Option<Rc<str>>,
}

impl Pickle {
    /// Parses a pickle. Executes nothing.
    ///
    /// # Errors
    /// The pickle is invalid, has an instruction that `torch.save` does not write, or refers to a
    /// function that runs code.
    pub(in crate::import) fn parse(bytes: &[u8]) -> Result<Pickle> {
        let (values, root, first_opaque) = PickleVm::run(bytes)?;
        Ok(Pickle { values, root, first_opaque })
    }

    /// The outermost value.
    pub(in crate::import) fn root(&self) -> ObjectId {
        self.root
    }

    /// The value with this index.
    pub(in crate::import) fn value(&self, id: ObjectId) -> &Value {
        &self.values[id as usize]
    }

    /// The name of the first unsupported class or function in the pickle.
    pub(in crate::import) fn first_opaque(&self) -> Option<&str> {
        self.first_opaque.as_deref()
    }

    /// Iterates over the entries of a dictionary whose keys are texts. Other values have no
    /// entries.
    pub(in crate::import) fn entries(&self, id: ObjectId) -> impl Iterator<Item = (&str, ObjectId)> {
        let pairs: &[(ObjectId, ObjectId)] = match self.value(id) {
            Value::Dict(pairs) => pairs,
            _ => &[],
        };
        pairs.iter().filter_map(|&(key, value)| match self.value(key) {
            Value::Text(text) => Some((&**text, value)),
            _ => None,
        })
    }

    /// Returns the entry of a dictionary with this key.
    pub(in crate::import) fn get(&self, id: ObjectId, key: &str) -> Option<ObjectId> {
        self.entries(id).filter(|(name, _)| *name == key).last().map(|(_, value)| value)
    }

    /// Describes a value for an error message.
    pub(in crate::import) fn describe(&self, id: ObjectId) -> String {
        match self.value(id) {
            Value::None => "None".to_owned(),
            Value::Bool(_) => "a boolean".to_owned(),
            Value::Int(_) => "an integer".to_owned(),
            Value::Float(_) => "a float".to_owned(),
            Value::Text(_) => "a text".to_owned(),
            Value::Other(what) => (*what).to_owned(),
            Value::Tuple(_) => "a tuple".to_owned(),
            Value::List(_) => "a list".to_owned(),
            Value::Dict(_) => "a dictionary".to_owned(),
            Value::Storage(_) => "a storage".to_owned(),
            Value::Tensor(_) => "a tensor".to_owned(),
            Value::Global(_) => "a function or type of torch".to_owned(),
            Value::Opaque(name) => format!("an object of {name}, which is not supported"),
        }
    }
}
