//! `.arrow`: Arrow IPC, in the streaming format that the Hugging Face `datasets` cache uses
//! or in the file format.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use arrow_array::{Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, Schema};

use super::{Item, Sink};

pub(super) fn read(path: &Path, column: &str, sink: &mut Sink) -> Result<()> {
    let cannot = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let size = file.metadata().with_context(cannot)?.len();
    let mut magic = [0; 6];
    let is_file_format = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
    file.rewind().with_context(cannot)?;
    let damaged = |row: u64, e: &ArrowError| {
        anyhow!(
            "{} of {size} bytes cannot be read as Arrow from row {row} on: {e}: it is damaged or cut short",
            path.display()
        )
    };
    let open = |e| damaged(0, &e);
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (schema, batches): (_, Box<dyn Iterator<Item = Result<RecordBatch, ArrowError>>>) = if is_file_format {
        let reader = FileReader::try_new(file, None).map_err(open)?;
        (reader.schema(), Box::new(reader))
    } else {
        let reader = StreamReader::try_new(&mut file, None).map_err(open)?;
        (reader.schema(), Box::new(reader))
    };
    let index =
        index_of(&schema, column).with_context(|| format!("{} has no usable column \"{column}\"", path.display()))?;
    let mut row = 0u64;
    for batch in batches {
        let batch = batch.map_err(|e| damaged(row, &e))?;
        let texts = batch.column(index);
        for i in 0..texts.len() {
            let item = match text_at(texts.as_ref(), i) {
                Some(text) => Item::Text(text.to_owned()),
                None => Item::Bad(anyhow!(
                    "{} row {row} has null in column \"{column}\": it must be a string",
                    path.display()
                )),
            };
            row += 1;
            // Batches do not say where they lie in the file.
            if sink(item, 0).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// `None` for null.
fn text_at(texts: &dyn Array, i: usize) -> Option<&str> {
    if texts.is_null(i) {
        return None;
    }
    let any = texts.as_any();
    let small = any.downcast_ref::<StringArray>().map(|a| a.value(i));
    let large = || any.downcast_ref::<LargeStringArray>().map(|a| a.value(i));
    let view = || any.downcast_ref::<StringViewArray>().map(|a| a.value(i));
    small.or_else(large).or_else(view)
}

fn index_of(schema: &Schema, column: &str) -> Result<usize> {
    use arrow_schema::DataType::{LargeUtf8, Utf8, Utf8View};
    let Ok(index) = schema.index_of(column) else {
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        bail!("it has {}; name the right one with --text-column", names.join(", "));
    };
    match schema.field(index).data_type() {
        Utf8 | LargeUtf8 | Utf8View => Ok(index),
        other => bail!("it holds {other}, not strings"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array};
    use arrow_ipc::writer::{FileWriter, StreamWriter};
    use std::sync::Arc;

    fn documents(path: &Path, column: &str) -> (Vec<String>, Vec<String>, Option<String>) {
        super::super::collect(|sink| read(path, column, sink))
    }

    fn batch(texts: ArrayRef) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..texts.len() as i64));
        RecordBatch::try_from_iter_with_nullable([("id", ids, true), ("text", texts, true)]).unwrap()
    }

    #[test]
    fn both_formats_and_all_string_types_read_alike() {
        let folder = tempfile::tempdir().unwrap();
        let values = || vec![Some("one"), None, Some("tw\u{f6}")];
        let arrays: [ArrayRef; 3] = [
            Arc::new(StringArray::from(values())),
            Arc::new(LargeStringArray::from(values())),
            Arc::new(StringViewArray::from(values())),
        ];
        for (i, array) in arrays.into_iter().enumerate() {
            let batch = batch(array);
            let (stream, file) = (folder.path().join(format!("s{i}.arrow")), folder.path().join(format!("f{i}.arrow")));
            let mut streaming = StreamWriter::try_new(File::create(&stream).unwrap(), &batch.schema()).unwrap();
            let mut filing = FileWriter::try_new(File::create(&file).unwrap(), &batch.schema()).unwrap();
            for _ in 0..2 {
                streaming.write(&batch).unwrap();
                filing.write(&batch).unwrap();
            }
            streaming.finish().unwrap();
            filing.finish().unwrap();
            for path in [&stream, &file] {
                let (texts, bad, error) = documents(path, "text");
                assert_eq!(
                    (texts, bad.len(), error),
                    (["one", "tw\u{f6}"].repeat(2).iter().map(|&t| t.to_owned()).collect(), 2, None)
                );
                assert!(bad[1].contains("row 4 has null"), "{bad:?}");
            }
            let error = documents(&stream, "body").2.unwrap();
            assert!(error.contains("no usable column \"body\": it has id, text"), "{error}");
            assert!(documents(&stream, "id").2.unwrap().contains("it holds Int64, not strings"));
            let whole = std::fs::read(&stream).unwrap();
            std::fs::write(&stream, &whole[..whole.len() * 2 / 3]).unwrap();
            let error = documents(&stream, "text").2.unwrap_or_default();
            assert!(error.contains("cannot be read as Arrow from row 3 on"), "{error}");
        }
    }
}
