//! `.parquet`: one document a row, its text in one column.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::types::Type;

use super::Sink;

pub(super) fn read(path: &Path, bytes: u64, column: &str, sink: &mut Sink) -> Result<()> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let reader = SerializedFileReader::new(file)
        .map_err(|e| anyhow!("{} cannot be read as parquet: {e}: it is damaged or cut short", path.display()))?;
    let metadata = reader.metadata().file_metadata();
    let rows = metadata.num_rows().max(1) as u64;
    let projection = project(metadata.schema(), column)
        .with_context(|| format!("{} has no usable column \"{column}\"", path.display()))?;
    let damaged = |row: u64, e: &dyn std::fmt::Display| {
        anyhow!("{} cannot be read at row {row}: {e}: it is damaged or cut short", path.display())
    };
    let iterator = reader.get_row_iter(Some(projection)).map_err(|e| damaged(0, &e))?;
    for (number, row) in (0u64..).zip(iterator) {
        let row = row.map_err(|e| damaged(number, &e))?;
        let text = match row.into_columns().pop() {
            Some((_, Field::Str(text))) => text,
            Some((_, Field::Bytes(bytes))) => String::from_utf8(bytes.data().to_vec()).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                anyhow!("{} row {number} is not UTF-8 at byte {at} of its text: convert the file first", path.display())
            })?,
            Some((_, Field::Null)) => {
                bail!("{} row {number} has null in column \"{column}\": it must be a string", path.display())
            }
            _ => bail!("{} row {number} has no string in column \"{column}\"", path.display()),
        };
        sink(text, bytes * (number + 1) / rows)?;
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

    fn documents(path: &Path, column: &str) -> Result<Vec<String>, String> {
        let mut documents = Vec::new();
        read(path, 100, column, &mut |text, _| {
            documents.push(text);
            Ok(())
        })
        .map(|()| documents)
        .map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn rows_are_documents_and_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        write(&path, TEXT, &[Some(b"one"), Some(b""), Some("tw\u{f6}".as_bytes())]);
        assert_eq!(documents(&path, "text").unwrap(), ["one", "", "tw\u{f6}"]);
        let error = documents(&path, "content").unwrap_err();
        assert!(error.contains("has no usable column \"content\": it has text"), "{error}");

        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = documents(&path, "text").unwrap_err();
        assert!(error.contains("a.parquet cannot be read as parquet") && error.ends_with("cut short"), "{error}");

        write(&path, TEXT, &[Some(b"one"), None]);
        assert!(documents(&path, "text").unwrap_err().contains("row 1 has null in column \"text\""));
        write(&path, "message m { optional byte_array text; }", &[Some(b"ok"), Some(b"a\xff")]);
        assert!(documents(&path, "text").unwrap_err().contains("row 1 is not UTF-8 at byte 1"));
        write(&path, TEXT, &[Some(b"ok"), Some(b"a\xff")]);
        let error = documents(&path, "text").unwrap_err();
        assert!(error.contains("row 1"), "{error}");
    }
}
