//! The values of a pickle. All values are in one vector and refer to one another by index, so that
//! cycles and deep nesting need no recursion.

use std::rc::Rc;

use tch::Kind;

use super::globals::Global;

/// The index of a value in the vector of all values of a pickle.
pub(in crate::import) type ObjectId = u32;

/// A value of a pickle.
#[derive(Debug)]
pub(in crate::import) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    /// A value that no model needs, with its description: bytes, or an integer of more than 64
    /// bits.
    Other(&'static str),
    Tuple(Vec<ObjectId>),
    /// A list or a set.
    List(Vec<ObjectId>),
    /// Entries in the order of the file. Of equal keys, the last one applies.
    Dict(Vec<(ObjectId, ObjectId)>),
    /// The memory of tensors.
    Storage(Box<Storage>),
    Tensor(Box<StorageView>),
    Global(Global),
    /// An object of an unsupported class or function, with its name `module.name`.
    Opaque(Rc<str>),
}

/// A storage: `length` values of `kind`, in the archive entry `key`.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct Storage {
    pub(in crate::import) kind: Kind,
    pub(in crate::import) key: Rc<str>,
    pub(in crate::import) length: i64,
}

/// A tensor: a strided view of a storage, with offset and strides in values. The numbers come from
/// the file and must be checked before use.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::import) struct StorageView {
    pub(in crate::import) storage: Storage,
    pub(in crate::import) offset: i64,
    pub(in crate::import) size: Vec<i64>,
    pub(in crate::import) stride: Vec<i64>,
}
