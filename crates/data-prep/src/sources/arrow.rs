//! `.arrow`: Arrow IPC files. Supports the file format, and the streaming format of the Hugging
//! Face `datasets` cache.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use arrow_array::{Array, LargeStringArray, RecordBatch, StringArray, StringViewArray};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, Schema};

use super::item::{Sink, SourceItem};

/// Reads the rows of a column.
pub(super) fn read(path: &Path, column: &str, sink: &mut Sink) -> Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(failed)?;
    let size = file.metadata().with_context(failed)?.len();
    let mut magic = [0; 6];
    let is_file_format = file.read_exact(&mut magic).is_ok() && &magic == b"ARROW1";
    file.rewind().with_context(failed)?;
    let damaged = |row: u64, e: &ArrowError| {
        anyhow!(
            "cannot read {} ({size} bytes) as Arrow, from row {row}: {e}; the file is damaged or truncated",
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
    let index = column_index(&schema, column)
        .with_context(|| format!("{} has no usable column \"{column}\"", path.display()))?;
    let mut row = 0u64;
    for batch in batches {
        let batch = batch.map_err(|e| damaged(row, &e))?;
        let texts = batch.column(index);
        for i in 0..texts.len() {
            let item = match text_at(texts.as_ref(), i) {
                Some(text) => SourceItem::Text(text.to_owned()),
                None => SourceItem::Malformed(anyhow!(
                    "{} row {row} has null in column \"{column}\": expected a string",
                    path.display()
                )),
            };
            row += 1;
            // The position of a batch in the file is not available.
            if sink(item, 0).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Returns the string in row `i`, or `None` for null.
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

fn column_index(schema: &Schema, column: &str) -> Result<usize> {
    use arrow_schema::DataType::{LargeUtf8, Utf8, Utf8View};
    let Ok(index) = schema.index_of(column) else {
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        bail!("the columns are {}; select one with --text-column", names.join(", "));
    };
    match schema.field(index).data_type() {
        Utf8 | LargeUtf8 | Utf8View => Ok(index),
        other => bail!("its type is {other}, not a string"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, Int64Array};
    use arrow_ipc::writer::{FileWriter, StreamWriter};
    use std::sync::Arc;

    fn documents(path: &Path, column: &str) -> (Vec<String>, Vec<String>, Option<String>) {
        crate::sources::item::collect(|sink| read(path, column, sink))
    }

    fn batch(texts: ArrayRef) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..texts.len() as i64));
        RecordBatch::try_from_iter_with_nullable([("id", ids, true), ("text", texts, true)]).unwrap()
    }

    #[test]
    fn both_formats_and_all_string_types_give_the_same_texts() {
        let dir = tempfile::tempdir().unwrap();
        let values = || vec![Some("one"), None, Some("tw\u{f6}")];
        let arrays: [ArrayRef; 3] = [
            Arc::new(StringArray::from(values())),
            Arc::new(LargeStringArray::from(values())),
            Arc::new(StringViewArray::from(values())),
        ];
        for (i, array) in arrays.into_iter().enumerate() {
            let batch = batch(array);
            let (stream, file) = (dir.path().join(format!("s{i}.arrow")), dir.path().join(format!("f{i}.arrow")));
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
            assert!(error.contains("no usable column \"body\": the columns are id, text"), "{error}");
            assert!(documents(&stream, "id").2.unwrap().contains("its type is Int64, not a string"));
            let whole = std::fs::read(&stream).unwrap();
            std::fs::write(&stream, &whole[..whole.len() * 2 / 3]).unwrap();
            let error = documents(&stream, "text").2.unwrap_or_default();
            assert!(error.contains("as Arrow, from row 3"), "{error}");
        }
    }
}
