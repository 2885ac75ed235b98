//! What a source file contains: documents and malformed records.

use std::ops::ControlFlow;

/// Item of a source file.
pub(crate) enum SourceItem {
    /// Document.
    Text(String),
    /// Malformed record. The error contains its position and the reason.
    Malformed(anyhow::Error),
}

/// Receives each item of a file with the number of bytes of the file read so far, and decides
/// whether reading continues. An error that a reader returns is therefore always an error of its
/// file, never of the receiver.
pub(crate) type Sink<'a> = dyn FnMut(SourceItem, u64) -> ControlFlow<()> + 'a;

/// Collects the texts, the reasons for malformed items, and the error of one reader.
#[cfg(test)]
pub(super) fn collect(
    read: impl FnOnce(&mut Sink) -> anyhow::Result<()>,
) -> (Vec<String>, Vec<String>, Option<String>) {
    let (mut texts, mut malformed) = (Vec::new(), Vec::new());
    let result = read(&mut |item, _| {
        match item {
            SourceItem::Text(text) => texts.push(text),
            SourceItem::Malformed(error) => malformed.push(format!("{error:#}")),
        }
        ControlFlow::Continue(())
    });
    (texts, malformed, result.err().map(|e| format!("{e:#}")))
}
