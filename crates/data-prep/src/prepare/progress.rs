//! Events that a preparation reports while it runs.

/// Stage of a preparation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrepareStage {
    /// Reads and tokenizes documents.
    Tokenizing,
    /// Writes shards.
    Writing,
}

/// Progress of the current stage.
#[derive(Debug, Clone, Copy)]
pub struct PrepareProgress {
    /// Current stage.
    pub stage: PrepareStage,
    /// Documents processed in this stage.
    pub documents: u64,
    /// UTF-8 bytes of text tokenized by this process.
    pub text_bytes: u64,
    /// Value of `done_bytes` when this process started: above 0 after a resume.
    pub start_bytes: u64,
    /// Bytes processed, out of `total_bytes`.
    pub done_bytes: u64,
    /// Bytes to process in this stage: of source files, or of ids. 0 for standard input.
    pub total_bytes: u64,
}

/// Event of a running preparation.
#[derive(Debug, Clone, Copy)]
pub enum PrepareEvent<'a> {
    /// Progress of the current stage.
    Progress(PrepareProgress),
    /// Message for the user.
    Message(&'a str),
}

/// Receives the events of a preparation, from any of its threads.
pub(crate) type OnEvent<'a> = dyn Fn(PrepareEvent<'_>) + Sync + 'a;
