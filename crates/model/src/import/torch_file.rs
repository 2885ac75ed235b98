//! Files of `torch.save`: an archive of a pickle and the bytes of its tensors.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};

use super::pickle::{ObjectId, Pickle, Storage, StorageView, Value};
use super::zip::Archive;

/// The first bytes of files of torch before 1.6, or with `_use_new_zipfile_serialization=False`: a
/// pickle of the number 0x1950a86a20f9469cfc6c.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// Maximum size of a pickle in bytes. A pickle has about 200 bytes per tensor, so this is far more
/// than any checkpoint needs.
const MAX_PICKLE_BYTES: u64 = 32 << 20;

/// An open file of `torch.save`. Opening reads the pickle; [`TorchFile::load`] reads a tensor.
#[derive(Debug)]
pub(super) struct TorchFile {
    archive: Archive,
    /// The directory in the archive, which torch names after the file.
    directory: String,
    pickle: Pickle,
    /// Storages that have been read, by key and type. Tied weights share a storage.
    storages: HashMap<(Rc<str>, Kind), Tensor>,
}

impl TorchFile {
    /// Opens a file.
    ///
    /// # Errors
    /// The file was not written by `torch.save`, is damaged, or refers to a function that runs
    /// code.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut start = Vec::new();
        File::open(path)?.take(LEGACY_MAGIC.len() as u64).read_to_end(&mut start)?;
        if start == LEGACY_MAGIC {
            bail!(
                "it is in the format of torch before 1.6: load it with torch.load(path, weights_only=True) and save it again with torch.save"
            );
        }
        ensure!(
            start.starts_with(b"PK"),
            "it does not begin like a file of torch.save: it may be damaged, or its download may have failed"
        );
        let mut archive = Archive::open(path)?;
        let directory =
            archive.names().find_map(|name| name.strip_suffix("/data.pkl")).context("it has no data.pkl")?.to_owned();
        let byteorder = format!("{directory}/byteorder");
        // Files of torch before 2.1 do not have this entry.
        if archive.size(&byteorder).is_some_and(|size| size <= 16) {
            let order = archive.read(&byteorder)?;
            ensure!(order == b"little", "it was written on a big-endian machine: save it again on a little-endian one");
        }
        let name = format!("{directory}/data.pkl");
        let size = archive.size(&name).unwrap_or_default();
        ensure!(size <= MAX_PICKLE_BYTES, "its pickle has {size} bytes, more than the maximum of {MAX_PICKLE_BYTES}");
        let pickle = Pickle::parse(&archive.read(&name)?)?;
        Ok(TorchFile { archive, directory, pickle, storages: HashMap::new() })
    }

    /// The contents of the file.
    pub(super) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// Returns the shape of the tensor `id`.
    ///
    /// # Errors
    /// Names the value if it is not a tensor.
    pub(super) fn size(&self, name: &str, id: ObjectId) -> Result<&[i64]> {
        match self.pickle.value(id) {
            Value::Tensor(view) => Ok(&view.size),
            _ => bail!("{name} is {}, not a tensor", self.pickle.describe(id)),
        }
    }

    /// Reads the tensor `id` in its stored type, on the CPU.
    ///
    /// # Errors
    /// Names the tensor that cannot be read.
    pub(super) fn load(&mut self, name: &str, id: ObjectId) -> Result<Tensor> {
        let Value::Tensor(view) = self.pickle.value(id) else {
            bail!("{name} is {}, not a tensor", self.pickle.describe(id));
        };
        let view = (**view).clone();
        self.view(&view).with_context(|| format!("tensor {name} cannot be read"))
    }

    fn view(&mut self, view: &StorageView) -> Result<Tensor> {
        let StorageView { storage, offset, size, stride } = view;
        let end = view_end(*offset, size, stride)?;
        let values = size.iter().try_fold(1i64, |n, &s| n.checked_mul(s));
        ensure!(
            end <= storage.length && values.is_some_and(|n| n <= storage.length),
            "it claims more values than the {} of its storage {}",
            storage.length,
            storage.key
        );
        Ok(self.storage(storage)?.f_as_strided(size, stride, *offset)?)
    }

    fn storage(&mut self, storage: &Storage) -> Result<&Tensor> {
        let key = (storage.key.clone(), storage.kind);
        if !self.storages.contains_key(&key) {
            let entry = format!("{}/data/{}", self.directory, storage.key);
            let claimed = u64::try_from(storage.length)
                .ok()
                .and_then(|length| length.checked_mul(storage.kind.elt_size_in_bytes() as u64));
            let available = self.archive.size(&entry).with_context(|| format!("entry {entry} is missing"))?;
            let claimed = claimed
                .filter(|&claimed| claimed <= available)
                .with_context(|| format!("its storage claims {} values, but has {available} bytes", storage.length))?;
            let mut bytes = self.archive.read(&entry)?;
            bytes.truncate(claimed as usize);
            let tensor = Tensor::f_from_data_size(&bytes, &[storage.length], storage.kind)?;
            self.storages.insert(key.clone(), tensor);
        }
        Ok(&self.storages[&key])
    }
}

/// Returns the number of values of the storage that a view needs: the index of its last value plus
/// one.
fn view_end(offset: i64, size: &[i64], stride: &[i64]) -> Result<i64> {
    ensure!(size.len() == stride.len(), "its shape {size:?} and strides {stride:?} have different lengths");
    ensure!(
        offset >= 0 && size.iter().chain(stride).all(|&n| n >= 0),
        "its shape {size:?}, strides {stride:?} and offset {offset} contain a negative number"
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
    use super::view_end;

    #[test]
    fn ends_of_views_are_computed_without_overflow() {
        assert_eq!(view_end(3, &[2, 4], &[1, 2]).unwrap(), 3 + 1 + 6 + 1);
        assert_eq!((view_end(5, &[], &[]).unwrap(), view_end(5, &[7, 0], &[9, 9]).unwrap()), (6, 5));
        for (offset, size, stride) in [
            (-1, vec![2], vec![1]),
            (0, vec![-2], vec![1]),
            (0, vec![2], vec![-1]),
            (0, vec![2], vec![1, 1]),
            (i64::MAX, vec![2], vec![1]),
            (0, vec![i64::MAX, i64::MAX], vec![i64::MAX, 1]),
        ] {
            assert!(view_end(offset, &size, &stride).is_err(), "{offset} {size:?} {stride:?}");
        }
    }
}
