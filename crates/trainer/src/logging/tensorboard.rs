//! TensorBoard events. The record format and the messages come from tensorboard-rs. Files are named,
//! created and flushed here, because the writer thread of tensorboard-rs panics on a full disk.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use protobuf::{Message, RepeatedField};
use tensorboard_proto::event::{Event, SessionLog, SessionLog_SessionStatus};
use tensorboard_proto::summary::{Summary, Summary_Value, SummaryMetadata, SummaryMetadata_PluginData};
use tensorboard_proto::tensor::TensorProto;
use tensorboard_proto::tensor_shape::{TensorShapeProto, TensorShapeProto_Dim};
use tensorboard_proto::types::DataType;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary;

use crate::logging::sessions::unix_seconds;

/// Writes records into a buffered file.
type TensorBoardRecords = RecordWriter<BufWriter<File>>;

/// Writes an event file. After a failed write, which is returned once, it writes nothing more.
pub(crate) struct EventWriter {
    /// `None` for a disabled writer, and after a failed write.
    records: Option<TensorBoardRecords>,
    last_flush: Instant,
}

/// Time between flushes.
const FLUSH_INTERVAL: Duration = Duration::from_secs(10);

impl EventWriter {
    /// Returns a writer that writes nothing.
    pub(crate) fn disabled() -> Self {
        EventWriter { records: None, last_flush: Instant::now() }
    }

    /// Creates a file in `run_dir/tensorboard`. The file begins with a START marker at
    /// `first_step` (0 for a new run), so that TensorBoard drops the events that an earlier session
    /// wrote for this step and later ones.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn create(run_dir: &Path, first_step: u64) -> Result<Self> {
        let dir = run_dir.join("tensorboard");
        let create = || -> Result<TensorBoardRecords> {
            fs::create_dir_all(&dir)?;
            let mut records = RecordWriter::new(BufWriter::new(new_file(&dir)?));
            let mut version = event(first_step);
            version.set_file_version("brain.Event:2".to_owned());
            write(&mut records, &version)?;
            let mut start = event(first_step);
            let mut session = SessionLog::new();
            session.set_status(SessionLog_SessionStatus::START);
            start.set_session_log(session);
            write(&mut records, &start)?;
            records.flush()?;
            Ok(records)
        };
        let records = create().with_context(|| format!("no events can be written in {}", dir.display()))?;
        Ok(EventWriter { records: Some(records), last_flush: Instant::now() })
    }

    /// Appends scalars of one step.
    ///
    /// # Errors
    /// The file cannot be written. Later calls then write nothing and return no error.
    pub(crate) fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> Result<()> {
        let flush = self.last_flush.elapsed() >= FLUSH_INTERVAL;
        self.write(|records| {
            for &(name, value) in scalars {
                let mut e = event(step);
                e.set_summary(summary::scalar(name, value as f32));
                write(records, &e)?;
            }
            Ok(())
        })?;
        if flush { self.flush() } else { Ok(()) }
    }

    /// Appends a text as a Markdown code block, so that TensorBoard shows it unchanged.
    ///
    /// # Errors
    /// The file cannot be written. Later calls then write nothing and return no error.
    pub(crate) fn text(&mut self, step: u64, name: &str, text: &str) -> Result<()> {
        let mut tensor = TensorProto::new();
        tensor.set_dtype(DataType::DT_STRING);
        // Markdown shows lines that begin with four spaces unchanged.
        let indented: String = text.lines().map(|line| format!("    {line}\n")).collect();
        tensor.set_string_val(RepeatedField::from_vec(vec![indented.into_bytes()]));
        // TensorBoard expects a tensor of shape [1].
        let (mut shape, mut one) = (TensorShapeProto::new(), TensorShapeProto_Dim::new());
        one.set_size(1);
        shape.set_dim(RepeatedField::from_vec(vec![one]));
        tensor.set_tensor_shape(shape);
        let mut plugin = SummaryMetadata_PluginData::new();
        plugin.set_plugin_name("text".to_owned());
        let mut metadata = SummaryMetadata::new();
        metadata.set_plugin_data(plugin);
        let mut value = Summary_Value::new();
        value.set_tag(name.to_owned());
        value.set_metadata(metadata);
        value.set_tensor(tensor);
        let mut summary = Summary::new();
        summary.set_value(RepeatedField::from_vec(vec![value]));
        let mut e = event(step);
        e.set_summary(summary);
        self.write(|records| write(records, &e))
    }

    /// Writes the buffer to the file.
    ///
    /// # Errors
    /// The file cannot be written. Later calls then write nothing and return no error.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.last_flush = Instant::now();
        self.write(|records| Ok(records.flush()?))
    }

    /// Calls `write`, and disables the writer if it fails.
    fn write(&mut self, write: impl FnOnce(&mut TensorBoardRecords) -> Result<()>) -> Result<()> {
        let Some(records) = &mut self.records else { return Ok(()) };
        let result = write(records);
        if result.is_err() {
            self.records = None;
        }
        result
    }
}

fn event(step: u64) -> Event {
    let mut event = Event::new();
    event.set_wall_time(unix_seconds());
    event.set_step(step as i64);
    event
}

fn write<W: Write>(records: &mut RecordWriter<W>, event: &Event) -> Result<()> {
    Ok(records.write(&event.write_to_bytes()?)?)
}

/// Creates an event file under a new name. A counter distinguishes files that one process creates
/// within a second.
fn new_file(dir: &Path) -> Result<File> {
    let seconds = unix_seconds() as u64;
    let host = torch_ext::distributed::host_name();
    for counter in 0..1000 {
        let name = format!("events.out.tfevents.{seconds:010}.{}.{}.{counter}", host, std::process::id());
        match OpenOptions::new().write(true).create_new(true).open(dir.join(name)) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            result => return Ok(result?),
        }
    }
    bail!("1000 event files of this process exist already")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(dir: &Path) -> Vec<Vec<Event>> {
        let mut files: Vec<_> = fs::read_dir(dir.join("tensorboard")).unwrap().map(|f| f.unwrap().path()).collect();
        files.sort();
        files
            .iter()
            .map(|file| {
                let (bytes, mut at, mut events) = (fs::read(file).unwrap(), 0, Vec::new());
                while at < bytes.len() {
                    let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
                    events.push(Event::parse_from_bytes(&bytes[at + 12..at + 12 + length]).unwrap());
                    at += 16 + length;
                }
                events
            })
            .collect()
    }

    #[test]
    fn files_start_with_a_marker_and_are_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        for first in [0, 51] {
            let mut writer = EventWriter::create(dir.path(), first).unwrap();
            writer.scalars(first + 1, &[("loss", 2.5)]).unwrap();
            writer.flush().unwrap();
        }
        let files = events(dir.path());
        assert_eq!(files.len(), 2);
        for (events, first) in files.iter().zip([0, 51]) {
            assert_eq!(events[0].get_file_version(), "brain.Event:2");
            assert_eq!(events[1].get_session_log().get_status(), SessionLog_SessionStatus::START);
            assert_eq!(events[1].get_step(), first);
            let value = &events[2].get_summary().get_value()[0];
            assert_eq!((value.get_tag(), value.get_simple_value(), events[2].get_step()), ("loss", 2.5, first + 1));
        }
    }

    #[test]
    fn a_text_is_a_tensor_of_one_string_for_the_text_plugin() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 0).unwrap();
        writer.text(0, "config", "[run]\nname = \"x\"\n").unwrap();
        writer.flush().unwrap();
        let events = events(dir.path());
        let value = &events[0][2].get_summary().get_value()[0];
        assert_eq!((value.get_tag(), value.get_metadata().get_plugin_data().get_plugin_name()), ("config", "text"));
        let tensor = value.get_tensor();
        assert_eq!(tensor.get_string_val(), [b"    [run]\n    name = \"x\"\n".to_vec()]);
        assert_eq!((tensor.get_dtype(), tensor.get_tensor_shape().get_dim()[0].get_size()), (DataType::DT_STRING, 1));
    }

    #[test]
    fn a_failed_write_is_returned_once() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let records = RecordWriter::new(BufWriter::with_capacity(16, full));
        let mut writer = EventWriter { records: Some(records), last_flush: Instant::now() };
        assert!(writer.scalars(1, &[("loss", 1.0)]).is_err());
        assert!(writer.scalars(2, &[("loss", 1.0)]).is_ok());
    }
}
