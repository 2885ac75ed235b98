//! `.parquet`: one document per row, with its text in one column.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::item::{Sink, SourceItem};

/// Reads the rows of a column after the first `skip` rows. `bytes` is the size of the file.
pub(super) fn read(path: &Path, bytes: u64, column: &str, skip: u64, sink: &mut Sink) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let reader = SerializedFileReader::new(file).map_err(|e| {
        anyhow!("cannot read {} ({bytes} bytes) as parquet: {e}; the file is damaged or truncated", path.display())
    })?;
    let metadata = reader.metadata();
    let rows = metadata.file_metadata().num_rows().max(1) as u64;
    let projection = project(metadata.file_metadata().schema(), column)
        .with_context(|| format!("{} has no usable column \"{column}\"", path.display()))?;
    // Index of the next row.
    let mut index = 0u64;
    for (group, group_metadata) in metadata.row_groups().iter().enumerate() {
        let in_group = group_metadata.num_rows().max(0) as u64;
        if index + in_group <= skip {
            index += in_group;
            continue;
        }
        let start = group_metadata.columns().iter().map(|c| c.byte_range().0).min().unwrap_or(0);
        let damaged = |row: u64, e: &dyn std::fmt::Display| {
            anyhow!(
                "cannot read {} at row {row} (row group {group}, from byte {start}): {e}; the file is damaged or truncated",
                path.display()
            )
        };
        let group_reader = reader.get_row_group(group).map_err(|e| damaged(index, &e))?;
        let iterator = group_reader.get_row_iter(Some(projection.clone())).map_err(|e| damaged(index, &e))?;
        for row in iterator {
            let row = row.map_err(|e| damaged(index, &e))?;
            let position = || format!("{} row {index}", path.display());
            let item = match row.into_columns().pop() {
                Some((_, Field::Str(text))) => SourceItem::Text(text),
                Some((_, Field::Bytes(bytes))) => match String::from_utf8(bytes.data().to_vec()) {
                    Ok(text) => SourceItem::Text(text),
                    Err(e) => SourceItem::Malformed(anyhow!(
                        "{} is not UTF-8 at byte {} of its text: convert the file first",
                        position(),
                        e.utf8_error().valid_up_to()
                    )),
                },
                Some((_, Field::Null)) => {
                    SourceItem::Malformed(anyhow!("{} has null in column \"{column}\": expected a string", position()))
                }
                _ => SourceItem::Malformed(anyhow!("{} has no string in column \"{column}\"", position())),
            };
            index += 1;
            if index > skip && sink(item, bytes * index / rows).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Returns the schema with only the text column.
fn project(schema: &Type, column: &str) -> Result<Type> {
    let fields = schema.get_fields();
    let Some(field) = fields.iter().find(|f| f.name() == column) else {
        let names: Vec<&str> = fields.iter().map(|f| f.name()).collect();
        bail!("the columns are {}; select one with --text-column", names.join(", "));
    };
    let is_bytes = field.is_primitive() && field.get_physical_type() == parquet::basic::Type::BYTE_ARRAY;
    if !is_bytes {
        bail!("its type is not a string");
    }
    Ok(Type::group_type_builder(schema.name()).with_fields(vec![Arc::clone(field)]).build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use parquet::data_type::ByteArrayType;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    fn write(path: &Path, schema: &str, values: &[Option<&[u8]>]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let present: Vec<_> = values.iter().flatten().map(|v| v.to_vec().into()).collect();
        let levels: Vec<i16> = values.iter().map(|v| i16::from(v.is_some())).collect();
        column.typed::<ByteArrayType>().write_batch(&present, Some(&levels), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    const TEXT: &str = "message m { optional byte_array text (UTF8); }";

    fn documents(path: &Path, column: &str, skip: u64) -> (Vec<String>, Vec<String>, Option<String>) {
        crate::sources::item::collect(|sink| read(path, 100, column, skip, sink))
    }

    #[test]
    fn rows_are_documents_and_errors_name_the_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.parquet");
        write(&path, TEXT, &[Some(b"one"), Some(b""), Some("tw\u{f6}".as_bytes())]);
        assert_eq!(documents(&path, "text", 0).0, ["one", "", "tw\u{f6}"]);
        assert_eq!(documents(&path, "text", 2).0, ["tw\u{f6}"]);
        assert_eq!(documents(&path, "text", 3).0, [""; 0]);
        let error = documents(&path, "content", 0).2.unwrap();
        assert!(error.contains("has no usable column \"content\": the columns are text"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = documents(&path, "text", 0).2.unwrap();
        assert!(error.contains("a.parquet (100 bytes) as parquet") && error.ends_with("truncated"), "{error}");

        let bad = |path: &Path| documents(path, "text", 0).1.join("; ");
        write(&path, TEXT, &[Some(b"one"), None]);
        assert!(bad(&path).contains("row 1 has null in column \"text\""));
        write(&path, "message m { optional byte_array text; }", &[Some(b"ok"), Some(b"a\xff")]);
        assert!(bad(&path).contains("row 1 is not UTF-8 at byte 1"));
        write(&path, TEXT, &[Some(b"ok"), Some(b"a\xff")]);
        let (_, bad, error) = documents(&path, "text", 0);
        assert!(format!("{bad:?}{error:?}").contains("row 1"), "{bad:?} {error:?}");
    }
}
