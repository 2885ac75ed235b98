//! `.parquet`: one document a row, its text in one column.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::{Item, Sink};

pub(super) fn read(path: &Path, bytes: u64, column: &str, skip: u64, sink: &mut Sink) -> Result<()> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let reader = SerializedFileReader::new(file).map_err(|e| {
        anyhow!("{} of {bytes} bytes cannot be read as parquet: {e}: it is damaged or cut short", path.display())
    })?;
    let metadata = reader.metadata();
    let rows = metadata.file_metadata().num_rows().max(1) as u64;
    let projection = project(metadata.file_metadata().schema(), column)
        .with_context(|| format!("{} has no usable column \"{column}\"", path.display()))?;
    // The number of the next row.
    let mut number = 0u64;
    for (group, group_metadata) in metadata.row_groups().iter().enumerate() {
        let in_group = group_metadata.num_rows().max(0) as u64;
        if number + in_group <= skip {
            number += in_group;
            continue;
        }
        let start = group_metadata.columns().iter().map(|c| c.byte_range().0).min().unwrap_or(0);
        let damaged = |row: u64, e: &dyn std::fmt::Display| {
            anyhow!(
                "{} cannot be read at row {row} (row group {group}, from byte {start}): {e}: it is damaged or cut short",
                path.display()
            )
        };
        let group_reader = reader.get_row_group(group).map_err(|e| damaged(number, &e))?;
        let iterator = group_reader.get_row_iter(Some(projection.clone())).map_err(|e| damaged(number, &e))?;
        for row in iterator {
            let row = row.map_err(|e| damaged(number, &e))?;
            let place = || format!("{} row {number}", path.display());
            let item = match row.into_columns().pop() {
                Some((_, Field::Str(text))) => Item::Text(text),
                Some((_, Field::Bytes(bytes))) => match String::from_utf8(bytes.data().to_vec()) {
                    Ok(text) => Item::Text(text),
                    Err(e) => Item::Bad(anyhow!(
                        "{} is not UTF-8 at byte {} of its text: convert the file first",
                        place(),
                        e.utf8_error().valid_up_to()
                    )),
                },
                Some((_, Field::Null)) => {
                    Item::Bad(anyhow!("{} has null in column \"{column}\": it must be a string", place()))
                }
                _ => Item::Bad(anyhow!("{} has no string in column \"{column}\"", place())),
            };
            number += 1;
            if number > skip && sink(item, bytes * number / rows).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The schema with the text column alone.
fn project(schema: &Type, column: &str) -> Result<Type> {
    let fields = schema.get_fields();
    let Some(field) = fields.iter().find(|f| f.name() == column) else {
        let names: Vec<&str> = fields.iter().map(|f| f.name()).collect();
        bail!("it has {}; name the right one with --text-column", names.join(", "));
    };
    let is_bytes = field.is_primitive() && field.get_physical_type() == parquet::basic::Type::BYTE_ARRAY;
    if !is_bytes {
        bail!("it does not hold strings");
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
        super::super::collect(|sink| read(path, 100, column, skip, sink))
    }

    #[test]
    fn rows_are_documents_and_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, TEXT, &[Some(b"one"), Some(b""), Some("tw\u{f6}".as_bytes())]);
        assert_eq!(documents(&path, "text", 0).0, ["one", "", "tw\u{f6}"]);
        assert_eq!(documents(&path, "text", 2).0, ["tw\u{f6}"]);
        assert_eq!(documents(&path, "text", 3).0, [""; 0]);
        let error = documents(&path, "content", 0).2.unwrap();
        assert!(error.contains("has no usable column \"content\": it has text"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = documents(&path, "text", 0).2.unwrap();
        assert!(
            error.contains("a.parquet of 100 bytes cannot be read as parquet") && error.ends_with("cut short"),
            "{error}"
        );

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
