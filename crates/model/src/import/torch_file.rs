//! Files of `torch.save`: a pickle beside the raw bytes of its tensors, in one archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};

use super::pickle::{ObjectId, Pickle, Storage, StorageView, Value};
use super::zip::Archive;

/// How files of torch before 1.6, or with `_use_new_zipfile_serialization=False`, begin: a
/// pickle of the number 0x1950a86a20f9469cfc6c.
const LEGACY: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// A pickle describes tensors in some 200 bytes each; this is far beyond any checkpoint.
const MAX_PICKLE: u64 = 32 << 20;

/// An open file of `torch.save`. Its pickle is read; its tensors are, one by one, on demand.
#[derive(Debug)]
pub(super) struct TorchFile {
    archive: Archive,
    /// The folder within the archive, which torch names after the file.
    folder: String,
    pickle: Pickle,
    /// Whole storages by key and type: tied weights share one.
    storages: HashMap<(Rc<str>, Kind), Tensor>,
}

impl TorchFile {
    /// Opens a file.
    ///
    /// # Errors
    /// When it is not one of `torch.save`'s, damaged, or runs code.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        File::open(path)?.take(LEGACY.len() as u64).read_to_end(&mut start)?;
        if start == LEGACY {
            bail!(
                "it is in the format of torch before 1.6: load it with torch.load(path, weights_only=True) and torch.save it again"
            );
        }
        ensure!(
            start.starts_with(b"PK"),
            "it does not begin as a file of torch.save does: it may be damaged, or a download that failed"
        );
        let mut archive = Archive::open(path)?;
        let folder =
            archive.names().find_map(|name| name.strip_suffix("/data.pkl")).context("it has no data.pkl")?.to_owned();
        let byteorder = format!("{folder}/byteorder");
        // Absent in files of torch before 2.1.
        if archive.size(&byteorder).is_some_and(|size| size <= 16) {
            let order = archive.read(&byteorder)?;
            ensure!(order == b"little", "it was written on a big-endian machine: save it again on a little-endian one");
        }
        let name = format!("{folder}/data.pkl");
        let size = archive.size(&name).unwrap_or_default();
        ensure!(size <= MAX_PICKLE, "its pickle has {size} bytes, which no checkpoint needs");
        let pickle = Pickle::parse(&archive.read(&name)?)?;
        Ok(TorchFile { archive, folder, pickle, storages: HashMap::new() })
    }

    /// What the file holds.
    pub(super) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// The size of the tensor at `id`.
    ///
    /// # Errors
    /// Naming the tensor, when there is none.
    pub(super) fn size(&self, name: &str, id: ObjectId) -> Result<&[i64]> {
        match self.pickle.value(id) {
            Value::Tensor(view) => Ok(&view.size),
            _ => bail!("{name} is {}: a tensor is wanted", self.pickle.describe(id)),
        }
    }

    /// The tensor at `id`, on the CPU, in the type it is stored in.
    ///
    /// # Errors
    /// Naming the tensor.
    pub(super) fn load(&mut self, name: &str, id: ObjectId) -> Result<Tensor> {
        let Value::Tensor(view) = self.pickle.value(id) else {
            bail!("{name} is {}: a tensor is wanted", self.pickle.describe(id));
        };
        let view = (**view).clone();
        self.view(&view).with_context(|| format!("tensor {name} cannot be read"))
    }

    fn view(&mut self, view: &StorageView) -> Result<Tensor> {
        let StorageView { storage, offset, size, stride } = view;
        let reach = reach(*offset, size, stride)?;
        let values = size.iter().try_fold(1i64, |n, &s| n.checked_mul(s));
        ensure!(
            reach <= storage.length && values.is_some_and(|n| n <= storage.length),
            "it claims more values than the {} of its storage {}",
            storage.length,
            storage.key
        );
        Ok(self.storage(storage)?.f_as_strided(size, stride, *offset)?)
    }

    fn storage(&mut self, storage: &Storage) -> Result<&Tensor> {
        let key = (storage.key.clone(), storage.kind);
        if !self.storages.contains_key(&key) {
            let entry = format!("{}/data/{}", self.folder, storage.key);
            let claimed = u64::try_from(storage.length)
                .ok()
                .and_then(|length| length.checked_mul(storage.kind.elt_size_in_bytes() as u64));
            let there = self.archive.size(&entry).with_context(|| format!("entry {entry} is missing"))?;
            let claimed = claimed
                .filter(|&claimed| claimed <= there)
                .with_context(|| format!("its storage claims {} values, but has {there} bytes", storage.length))?;
            let mut bytes = self.archive.read(&entry)?;
            bytes.truncate(claimed as usize);
            let tensor = Tensor::f_from_data_size(&bytes, &[storage.length], storage.kind)?;
            self.storages.insert(key.clone(), tensor);
        }
        Ok(&self.storages[&key])
    }
}

/// How many values of its storage a view needs: one past the last that it touches.
fn reach(offset: i64, size: &[i64], stride: &[i64]) -> Result<i64> {
    ensure!(size.len() == stride.len(), "its shape {size:?} and strides {stride:?} do not belong together");
    ensure!(
        offset >= 0 && size.iter().chain(stride).all(|&n| n >= 0),
        "its shape {size:?}, strides {stride:?} and offset {offset} hold a negative number"
    );
    if size.contains(&0) {
        return Ok(offset);
    }
    size.iter()
        .zip(stride)
        .try_fold(offset, |end, (&size, &stride)| (size - 1).checked_mul(stride)?.checked_add(end))
        .and_then(|last| last.checked_add(1))
        .with_context(|| format!("its shape {size:?} and strides {stride:?} overflow"))
}

#[cfg(test)]
mod tests {
    use super::reach;

    #[test]
    fn views_are_measured_before_they_are_made() {
        assert_eq!(reach(3, &[2, 4], &[1, 2]).unwrap(), 3 + 1 + 6 + 1);
        assert_eq!((reach(5, &[], &[]).unwrap(), reach(5, &[7, 0], &[9, 9]).unwrap()), (6, 5));
        for (offset, size, stride) in [
            (-1, vec![2], vec![1]),
            (0, vec![-2], vec![1]),
            (0, vec![2], vec![-1]),
            (0, vec![2], vec![1, 1]),
            (i64::MAX, vec![2], vec![1]),
            (0, vec![i64::MAX, i64::MAX], vec![i64::MAX, 1]),
        ] {
            assert!(reach(offset, &size, &stride).is_err(), "{offset} {size:?} {stride:?}");
        }
    }
}
