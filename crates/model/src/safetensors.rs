//! Reading and writing of `.safetensors` files. Tensors are read one at a time, and the written
//! bytes depend only on names and values.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

/// Reads all tensors of a file, in the stored types, on the CPU.
///
/// # Errors
/// Names the file and the tensor if the header has wrong sizes, overlaps or exceeds the file, or a
/// type is not supported.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    read(path).with_context(|| format!("{} cannot be read as safetensors", path.display()))
}

fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut file = File::open(path)?;
    let locations = read_header(&mut file)?;
    let mut tensors = BTreeMap::new();
    for (name, location) in locations {
        let mut bytes = vec![0u8; location.length];
        file.seek(SeekFrom::Start(location.start as u64))?;
        file.read_exact(&mut bytes)?;
        tensors.insert(name, Tensor::f_from_data_size(&bytes, &location.shape, location.kind)?);
    }
    Ok(tensors)
}

/// The location, shape and type of a tensor in a file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorLocation {
    /// Offset of the first byte.
    pub(crate) start: usize,
    /// Number of bytes.
    pub(crate) length: usize,
    pub(crate) shape: Vec<i64>,
    pub(crate) kind: Kind,
}

/// Finds the tensor `name` in a file, and validates the whole header.
///
/// # Errors
/// Returns the errors of [`read_tensors`], or names the file that has no such tensor.
pub(crate) fn locate_tensor(path: &Path, name: &str) -> Result<TensorLocation> {
    let find = || read_header(&mut File::open(path)?)?.remove(name).with_context(|| format!("it has no tensor {name}"));
    find().with_context(|| format!("{} cannot be read as safetensors", path.display()))
}

/// Reads the locations of all tensors by name. Afterward, the file is at the start of the tensors.
fn read_header(file: &mut File) -> Result<BTreeMap<String, TensorLocation>> {
    let length = file.metadata()?.len();
    let mut prefix = [0u8; 8];
    ensure!(length > 8, "it is only {length} bytes long");
    file.read_exact(&mut prefix)?;
    let header_length = u64::from_le_bytes(prefix);
    // The limit of the format. It also prevents the allocation of a wrong length.
    ensure!(
        header_length <= 100_000_000 && header_length <= length - 8,
        "its header claims {header_length} bytes, but the file has {length}"
    );
    let mut header = vec![0u8; header_length as usize];
    file.read_exact(&mut header)?;
    // Deserializing checks that the tensors are contiguous and their sizes match the shapes.
    let metadata: Metadata = serde_json::from_slice(&header).context("its header is broken")?;
    let data_start = 8 + header_length;
    let mut locations = BTreeMap::new();
    let mut end = 0u64;
    for (name, info) in metadata.tensors() {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let available = length - data_start;
        ensure!(
            from <= to && to <= available,
            "tensor {name} claims bytes {from} to {to} of {available}: the file is truncated or its header is wrong"
        );
        end = end.max(to);
        let kind = kind_of(info.dtype).with_context(|| format!("tensor {name}"))?;
        let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        let values = shape.iter().try_fold(1u64, |n, &s| n.checked_mul(s as u64));
        ensure!(
            values.and_then(|n| n.checked_mul(kind.elt_size_in_bytes() as u64)) == Some(to - from),
            "tensor {name} of shape {shape:?} claims {} bytes",
            to - from
        );
        let (start, length) = ((data_start + from) as usize, (to - from) as usize);
        locations.insert(name.clone(), TensorLocation { start, length, shape, kind });
    }
    ensure!(data_start + end == length, "it has {} bytes that belong to no tensor", length - data_start - end);
    Ok(locations)
}

fn kind_of(dtype: Dtype) -> Result<Kind> {
    Ok(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        other => bail!("its type {other:?} is not supported"),
    })
}

/// Writes tensors (fp32, bf16, fp16 or int64) and syncs the file to disk. The bytes of one tensor
/// are in memory at a time. An existing file is overwritten in place, so that an error may leave an
/// incomplete file.
///
/// # Errors
/// Names the file that cannot be written, for example because the disk is full.
pub fn write_tensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    write(path, tensors.into_iter().collect()).with_context(|| format!("{} cannot be written", path.display()))
}

/// Writes a file with one tensor, which may be larger than memory, and syncs it to disk. `chunks`
/// are its rows along the first axis, in order.
///
/// # Errors
/// Returns the error of a chunk, or names the file that cannot be written.
pub(crate) fn write_rows(
    path: &Path,
    name: &str,
    shape: &[i64],
    kind: Kind,
    chunks: impl Iterator<Item = Result<Tensor>>,
) -> Result<()> {
    let write = || -> Result<()> {
        let entries = [(dtype_of(name, kind)?, name, shape.to_vec())];
        let mut file = create(path, &entries)?;
        for chunk in chunks {
            write_bytes(&mut file, &chunk?)?;
        }
        finish(file)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}

fn write(path: &Path, tensors: Vec<(&str, &Tensor)>) -> Result<()> {
    let mut tensors: Vec<(Dtype, &str, &Tensor)> = tensors
        .into_iter()
        .map(|(name, tensor)| Ok((dtype_of(name, tensor.kind())?, name, tensor)))
        .collect::<Result<_>>()?;
    // The order of the safetensors library: by decreasing alignment, then by name.
    tensors.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let entries: Vec<_> = tensors.iter().map(|(dtype, name, tensor)| (*dtype, *name, tensor.size())).collect();
    let mut file = create(path, &entries)?;
    for (_, _, tensor) in tensors {
        write_bytes(&mut file, tensor)?;
    }
    finish(file)
}

fn dtype_of(name: &str, kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Half => Dtype::F16,
        Kind::Int64 => Dtype::I64,
        other => bail!("tensor {name} has type {other:?}, which cannot be written"),
    })
}

/// Creates the file and writes its header. The tensors must follow in the order of `entries`.
fn create(path: &Path, entries: &[(Dtype, &str, Vec<i64>)]) -> Result<BufWriter<File>> {
    let mut end = 0;
    let infos = entries.iter().map(|(dtype, name, shape)| {
        let start = end;
        end += shape.iter().product::<i64>() as usize * dtype.bitsize() / 8;
        let shape = shape.iter().map(|&n| n as usize).collect();
        ((*name).to_owned(), TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) })
    });
    // `transformers` rejects files that do not name a framework.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(format), infos.collect())?)?;
    // The tensors are aligned to 8 bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = BufWriter::new(File::create(path)?);
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    Ok(file)
}

fn write_bytes(file: &mut BufWriter<File>, tensor: &Tensor) -> Result<()> {
    let tensor = tch::no_grad(|| tensor.detach().f_to_device(Device::Cpu))?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    file.write_all(&bytes)?;
    Ok(())
}

fn finish(file: BufWriter<File>) -> Result<()> {
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    // Devices and pipes cannot be synced.
    if file.metadata()?.is_file() {
        file.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(header: &str, data: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn read_error(file: &tempfile::NamedTempFile) -> String {
        format!("{:#}", read_tensors(file.path()).unwrap_err())
    }

    #[test]
    fn tensors_round_trip_and_bytes_do_not_depend_on_order() {
        let directory = tempfile::tempdir().unwrap();
        let tensors: Vec<(String, Tensor)> = [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Int64]
            .iter()
            .map(|&kind| (format!("{kind:?}"), Tensor::randint(100, [3, 4], (Kind::Float, Device::Cpu)).to_kind(kind)))
            .collect();
        let write = |name: &str, reversed: bool| {
            let path = directory.path().join(name);
            let mut list: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
            if reversed {
                list.reverse();
            }
            write_tensors(&path, list).unwrap();
            path
        };
        let (a, b) = (write("a", false), write("b", true));
        assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
        let back = read_tensors(&a).unwrap();
        for (name, tensor) in &tensors {
            assert_eq!(&back[name], tensor);
        }
    }

    #[test]
    fn files_are_written_in_place_and_a_full_disk_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let (target, link) = (directory.path().join("target"), directory.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let t = Tensor::arange(6, (Kind::Float, Device::Cpu));
        write_tensors(&link, [("t", &t)]).unwrap();
        assert_eq!(read_tensors(&target).unwrap()["t"], t);
        let new = File::create(directory.path().join("new")).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().permissions(), new.metadata().unwrap().permissions());
        let error = write_tensors(Path::new("/dev/full"), [("t", &t)]).unwrap_err();
        assert!(format!("{error:#}").contains("/dev/full cannot be written: No space left"), "{error:#}");
        // The safetensors library reads the same.
        let bytes = std::fs::read(&target).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!((read.len(), read.tensor("t").unwrap().shape()), (1, &[6][..]));
    }

    #[test]
    fn transposed_views_round_trip() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("t");
        let t = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]).tr();
        write_tensors(&path, [("t", &t)]).unwrap();
        assert_eq!(read_tensors(&path).unwrap()["t"], t);
    }

    #[test]
    fn wrong_headers_are_rejected_by_tensor_name() {
        let f32s = |shape: &str, from: usize, to: usize| {
            format!(r#"{{"weight":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
        };
        assert!(read_error(&file_with(&f32s("[2]", 0, 8), 4)).contains("tensor weight claims bytes 0 to 8 of 4"));
        let wrong_size = read_error(&file_with(&f32s("[3]", 0, 8), 8));
        assert!(wrong_size.contains("header is broken") || wrong_size.contains("claims 8 bytes"), "{wrong_size}");
        assert!(read_error(&file_with(&f32s("[2]", 0, 8), 12)).contains("4 bytes that belong to no tensor"));
        assert!(read_error(&file_with("not json", 8)).contains("header is broken"));
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(read_error(&file_with(overlap, 12)).contains("header is broken"));
        let huge = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(huge.path(), [255u8; 16]).unwrap();
        assert!(read_error(&huge).contains("header claims"));
        std::fs::write(huge.path(), [0u8; 3]).unwrap();
        assert!(read_error(&huge).contains("only 3 bytes"));
    }
}
