//! Throughput of reading and of tokenizing, with one thread and with all cores. Prints one JSON
//! object per line: `cargo bench -p data-prep --bench stages -- FILE TOKENIZER`.

use std::path::Path;

use data_prep::{Throughput, measure_throughput};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [input, tokenizer] = arguments.as_slice() else {
        anyhow::bail!("usage: cargo bench -p data-prep --bench stages -- FILE TOKENIZER");
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut counts = vec![1, cores];
    counts.dedup();
    for threads in counts {
        let Throughput { text_mb, reading_mb_s, tokenizing_mb_s, tokenizers_mb_s } =
            measure_throughput(input, Path::new(tokenizer), threads)?;
        println!(
            "{{\"threads\": {threads}, \"text_mb\": {text_mb:.1}, \"reading_mb_s\": {reading_mb_s:.1}, \"tokenizing_mb_s\": {tokenizing_mb_s:.1}, \"tokenizers_mb_s\": {tokenizers_mb_s:.2}}}"
        );
    }
    Ok(())
}
