//! Tensors in `.safetensors` files: read one at a time, written with bytes that depend on
//! names and values alone.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use tch::{Device, Kind, Tensor};

/// Reads every tensor of a file, on the CPU, in the type it is stored in.
///
/// # Errors
/// Naming the file and the tensor: a header that lies about sizes, overlaps or runs past
/// the end; a type that is not built here.
pub fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    read(path).with_context(|| format!("{} cannot be read as safetensors", path.display()))
}

fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let mut file = File::open(path)?;
    let places = read_header(&mut file)?;
    let mut tensors = BTreeMap::new();
    for (name, place) in places {
        let mut bytes = vec![0u8; place.length];
        file.seek(SeekFrom::Start(place.start as u64))?;
        file.read_exact(&mut bytes)?;
        tensors.insert(name, Tensor::f_from_data_size(&bytes, &place.shape, place.kind)?);
    }
    Ok(tensors)
}

/// Where a tensor lies in its file, and what it is.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorLocation {
    /// Its first byte.
    pub(crate) start: usize,
    /// Its bytes.
    pub(crate) length: usize,
    pub(crate) shape: Vec<i64>,
    pub(crate) kind: Kind,
}

/// Where the tensor `name` lies in a file, which is validated as a whole.
///
/// # Errors
/// Naming the file: as [`read_tensors`], or that there is no such tensor.
pub(crate) fn place_of(path: &Path, name: &str) -> Result<TensorLocation> {
    let find = || read_header(&mut File::open(path)?)?.remove(name).with_context(|| format!("it has no tensor {name}"));
    find().with_context(|| format!("{} cannot be read as safetensors", path.display()))
}

/// Every tensor's place by its name; the file is left where its tensors begin.
fn read_header(file: &mut File) -> Result<BTreeMap<String, TensorLocation>> {
    let length = file.metadata()?.len();
    let mut prefix = [0u8; 8];
    ensure!(length > 8, "it is only {length} bytes long");
    file.read_exact(&mut prefix)?;
    let header_length = u64::from_le_bytes(prefix);
    // The format's own bound on headers; also keeps a lying length from being allocated.
    ensure!(
        header_length <= 100_000_000 && header_length <= length - 8,
        "its header claims {header_length} bytes, but the file has {length}"
    );
    let mut header = vec![0u8; header_length as usize];
    file.read_exact(&mut header)?;
    // Deserialising validates that offsets follow one another and fit the shapes.
    let metadata: Metadata = serde_json::from_slice(&header).context("its header is broken")?;
    let data_start = 8 + header_length;
    let mut places = BTreeMap::new();
    let mut end = 0u64;
    for (name, info) in metadata.tensors() {
        let (from, to) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let available = length - data_start;
        ensure!(
            from <= to && to <= available,
            "tensor {name} claims bytes {from} to {to} of {available}: the file is cut short or its header lies"
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
        places.insert(name.clone(), TensorLocation { start, length, shape, kind });
    }
    ensure!(data_start + end == length, "it has {} bytes that belong to no tensor", length - data_start - end);
    Ok(places)
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
        other => bail!("its type {other:?} is not built here"),
    })
}

/// Writes tensors (fp32, bf16, fp16 or int64) and waits until they are on the disk. The
/// file is written where it is, not replaced, and holds one tensor's bytes in memory at a
/// time; on an error half a file may stay.
///
/// # Errors
/// Naming the file, for instance when the disk is full.
pub fn write_tensors<'a>(path: &Path, tensors: impl IntoIterator<Item = (&'a str, &'a Tensor)>) -> Result<()> {
    write(path, tensors.into_iter().collect()).with_context(|| format!("{} cannot be written", path.display()))
}

/// Writes one tensor that does not fit into memory, by its first axis, and waits until it is on the disk: `chunks` are
/// its rows, in order.
///
/// # Errors
/// Naming the file, for instance when the disk is full.
pub(crate) fn write_rows(
    path: &Path,
    name: &str,
    shape: &[i64],
    kind: Kind,
    chunks: impl Iterator<Item = Result<Tensor>>,
) -> Result<()> {
    let write = || -> Result<()> {
        let described = [(dtype_of(name, kind)?, name, shape.to_vec())];
        let mut file = begin(path, &described)?;
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
    // The order of the safetensors library: by falling alignment, then by name.
    tensors.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let described: Vec<_> = tensors.iter().map(|(dtype, name, tensor)| (*dtype, *name, tensor.size())).collect();
    let mut file = begin(path, &described)?;
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
        other => bail!("tensor {name} has type {other:?}, which is not written here"),
    })
}

/// The file with its header: tensors' bytes follow in the order of `described`.
fn begin(path: &Path, described: &[(Dtype, &str, Vec<i64>)]) -> Result<BufWriter<File>> {
    let mut end = 0;
    let infos = described.iter().map(|(dtype, name, shape)| {
        let start = end;
        end += shape.iter().product::<i64>() as usize * dtype.bitsize() / 8;
        let shape = shape.iter().map(|&n| n as usize).collect();
        ((*name).to_owned(), TensorInfo { dtype: *dtype, shape, data_offsets: (start, end) })
    });
    // `transformers` refuses files that do not say which framework's layout they hold.
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut header = serde_json::to_vec(&Metadata::new(Some(format), infos.collect())?)?;
    // The tensors' bytes begin aligned to 8.
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
    // Devices and pipes have nothing to wait for.
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

    fn error_of(file: &tempfile::NamedTempFile) -> String {
        format!("{:#}", read_tensors(file.path()).unwrap_err())
    }

    #[test]
    fn tensors_round_trip_with_the_same_bytes_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let tensors: Vec<(String, Tensor)> = [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Int64]
            .iter()
            .map(|&kind| (format!("{kind:?}"), Tensor::randint(100, [3, 4], (Kind::Float, Device::Cpu)).to_kind(kind)))
            .collect();
        let write = |name: &str, reversed: bool| {
            let path = folder.path().join(name);
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
    fn a_file_is_written_in_place_readable_by_others_and_a_full_disk_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let t = Tensor::arange(6, (Kind::Float, Device::Cpu));
        write_tensors(&link, [("t", &t)]).unwrap();
        assert_eq!(read_tensors(&target).unwrap()["t"], t);
        let new = File::create(folder.path().join("new")).unwrap();
        assert_eq!(std::fs::metadata(&target).unwrap().permissions(), new.metadata().unwrap().permissions());
        let error = write_tensors(Path::new("/dev/full"), [("t", &t)]).unwrap_err();
        assert!(format!("{error:#}").contains("/dev/full cannot be written: No space left"), "{error:#}");
        // The library reads the same.
        let bytes = std::fs::read(&target).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!((read.len(), read.tensor("t").unwrap().shape()), (1, &[6][..]));
    }

    #[test]
    fn a_transposed_view_is_written_as_it_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t");
        let t = Tensor::arange(6, (Kind::Float, Device::Cpu)).view([2, 3]).tr();
        write_tensors(&path, [("t", &t)]).unwrap();
        assert_eq!(read_tensors(&path).unwrap()["t"], t);
    }

    #[test]
    fn lying_headers_are_refused_by_name() {
        let f32s = |shape: &str, from: usize, to: usize| {
            format!(r#"{{"weight":{{"dtype":"F32","shape":{shape},"data_offsets":[{from},{to}]}}}}"#)
        };
        assert!(error_of(&file_with(&f32s("[2]", 0, 8), 4)).contains("tensor weight claims bytes 0 to 8 of 4"));
        let wrong_size = error_of(&file_with(&f32s("[3]", 0, 8), 8));
        assert!(wrong_size.contains("header is broken") || wrong_size.contains("claims 8 bytes"), "{wrong_size}");
        assert!(error_of(&file_with(&f32s("[2]", 0, 8), 12)).contains("4 bytes that belong to no tensor"));
        assert!(error_of(&file_with("not json", 8)).contains("header is broken"));
        let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
        assert!(error_of(&file_with(overlap, 12)).contains("header is broken"));
        let huge = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(huge.path(), [255u8; 16]).unwrap();
        assert!(error_of(&huge).contains("header claims"));
        std::fs::write(huge.path(), [0u8; 3]).unwrap();
        assert!(error_of(&huge).contains("only 3 bytes"));
    }
}
