//! `cargo bench -p data-prep --bench stages -- FILE TOKENIZER`: the rates of reading and
//! tokenising by themselves, for one thread and for all cores, as one JSON object a line.

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [input, tokenizer] = arguments.as_slice() else {
        anyhow::bail!("usage: cargo bench -p data-prep --bench stages -- FILE TOKENIZER");
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut counts = vec![1, cores];
    counts.dedup();
    for threads in counts {
        let r = data_prep::rates(input, Path::new(tokenizer), threads)?;
        println!(
            "{{\"threads\": {threads}, \"text_mb\": {:.1}, \"reading_mb_s\": {:.1}, \"tokenising_mb_s\": {:.1}, \"tokenizers_mb_s\": {:.2}}}",
            r.text, r.reading, r.tokenising, r.definition
        );
    }
    Ok(())
}
