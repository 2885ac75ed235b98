//! Reading of configuration files: TOML, inheritance by `base`, and `--set`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use toml::{Table, Value};

use crate::config::Config;

impl Config {
    /// Loads a configuration file and the files that it inherits from with `base = "other.toml"`.
    ///
    /// `overrides` are assignments `section.key=value`. Keys without a value get their defaults.
    ///
    /// # Errors
    /// Names the file and the key if the file is not TOML, a key is unknown, or a value is invalid.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let table = read_table(path, overrides)?;
        let data = table.get("data").and_then(Value::as_table);
        ensure!(
            data.is_some_and(|d| d.contains_key("path")),
            "{} has no data.path: set it to the output directory of `backpack prepare-data`, in the file or with --set data.path=DIR",
            path.display()
        );
        Self::from_table(path, table)
    }

    /// Loads a configuration like [`Config::load`], but `data.path` may be missing. It is then
    /// empty.
    ///
    /// # Errors
    /// Returns the errors of [`Config::load`].
    pub fn load_without_data(path: &Path, overrides: &[String]) -> Result<Self> {
        let mut table = read_table(path, overrides)?;
        if let Value::Table(data) = table.entry("data").or_insert_with(|| Value::Table(Table::new())) {
            data.entry("path").or_insert_with(|| Value::String(String::new()));
        }
        Self::from_table(path, table)
    }

    /// Converts a TOML table to a validated configuration. `path` is the file for error messages.
    fn from_table(path: &Path, table: Table) -> Result<Self> {
        let config: Config = serde_path_to_error::deserialize(Value::Table(table)).map_err(|e| {
            let message = e.inner().message().replace('\n', " ");
            // serde's message contains names of Rust types.
            let message = message.replace("expected u64", EXPECTED_COUNT).replace("expected usize", EXPECTED_COUNT);
            anyhow::anyhow!("invalid configuration {}: key {}: {message}", path.display(), e.path())
        })?;
        config.validate().with_context(|| format!("invalid configuration {}", path.display()))?;
        Ok(config)
    }

    /// Returns the configuration as TOML with every key, as it is written to the run directory.
    ///
    /// # Errors
    /// Returns an error if a path is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).context("cannot write the configuration as TOML")
    }
}

/// Replacement for names of unsigned Rust types in error messages.
const EXPECTED_COUNT: &str = "expected a whole number of at least 0";

/// Returns a table of all sections and keys, each with a value of its type.
fn schema() -> Result<Table> {
    match Value::try_from(Config::example()).context("cannot write the example configuration as TOML")? {
        Value::Table(table) => Ok(table),
        other => bail!("cannot write the example configuration as TOML: it is {}, not a table", other.type_str()),
    }
}

/// Reads a file with its bases and applies the overrides.
fn read_table(path: &Path, overrides: &[String]) -> Result<Table> {
    let schema = schema()?;
    let mut table = read_with_bases(path, &schema, &mut Vec::new())?;
    for assignment in overrides {
        apply(&mut table, &schema, assignment).with_context(|| format!("invalid --set {assignment}"))?;
    }
    Ok(table)
}

/// Reads a file and its bases. `visited` contains the files that inherit from it.
fn read_with_bases(path: &Path, schema: &Table, visited: &mut Vec<PathBuf>) -> Result<Table> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read the configuration file {}", path.display()))?;
    let real = path.canonicalize().with_context(|| format!("cannot resolve path {}", path.display()))?;
    ensure!(!visited.contains(&real), "{} inherits from itself through `base`", path.display());
    visited.push(real);
    let mut table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        anyhow::anyhow!("{} is not valid TOML: line {line}: {}", path.display(), e.message().replace('\n', " "))
    })?;
    let base = table.remove("base");
    check_keys(&table, schema, "").with_context(|| format!("invalid configuration {}", path.display()))?;
    let Some(base) = base else { return Ok(table) };
    let Value::String(base) = base else {
        bail!("{}: key base is {base}: it must be the path of another configuration file", path.display());
    };
    let base_path = path.parent().unwrap_or(Path::new(".")).join(base);
    let inherited = read_with_bases(&base_path, schema, visited)
        .with_context(|| format!("cannot load the base of {}", path.display()))?;
    Ok(merge(inherited, table))
}

/// Merges two tables. Keys of `over` replace those of `under` one by one.
fn merge(mut under: Table, over: Table) -> Table {
    for (key, value) in over {
        let merged = match (under.remove(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => Value::Table(merge(below, above)),
            (_, value) => value,
        };
        under.insert(key, merged);
    }
    under
}

/// Checks that every key is known and that its value has the right type. `prefix` is the section
/// and a dot.
fn check_keys(table: &Table, schema: &Table, prefix: &str) -> Result<()> {
    for (key, value) in table {
        let name = format!("{prefix}{key}");
        let example = find_key(schema, key, &name)?;
        match (value, example) {
            (Value::Table(inner), Value::Table(inner_schema)) => check_keys(inner, inner_schema, &format!("{name}."))?,
            _ => ensure!(
                fits(&name, value, example),
                "key {name} is {value}, which is {}; it must be {}",
                type_name(value),
                expected_type(&name, example)
            ),
        }
    }
    Ok(())
}

/// Returns the example value of a key.
///
/// # Errors
/// Names the nearest known key if the key is unknown.
fn find_key<'a>(schema: &'a Table, key: &str, name: &str) -> Result<&'a Value> {
    if let Some(example) = schema.get(key) {
        return Ok(example);
    }
    // The nearest key of the same section in spelling.
    let nearest = schema.keys().max_by(|a, b| {
        let similarity = |k: &str| strsim::jaro_winkler(k, key);
        similarity(a).total_cmp(&similarity(b))
    });
    let prefix = name.strip_suffix(key).unwrap_or_default();
    bail!("unknown key {name} (did you mean {prefix}{}?)", nearest.map_or("", String::as_str))
}

/// The only key with two types.
const MICRO_BATCH: &str = "batch.micro_batch_size";

/// Returns whether a value has the type of the example.
fn fits(name: &str, value: &Value, example: &Value) -> bool {
    match (value, example) {
        (Value::Integer(_), Value::Float(_)) => true,
        (Value::Integer(_), _) if name == MICRO_BATCH => true,
        (Value::Array(values), Value::Array(examples)) => {
            values.len() == examples.len() && values.iter().zip(examples).all(|(v, e)| fits(name, v, e))
        }
        _ => value.same_type(example),
    }
}

/// Returns the name of a value's type, with an article.
fn type_name(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "a list",
        Value::Table(_) => "a section",
    }
}

/// Returns the type that a key needs, with an article.
fn expected_type(name: &str, example: &Value) -> String {
    match example {
        _ if name == MICRO_BATCH => "a whole number or \"auto\"".to_owned(),
        Value::Array(values) => format!("a list of {} numbers", values.len()),
        other => type_name(other).to_owned(),
    }
}

/// Applies one assignment `section.key=value`, parsed as the type of the key.
fn apply(table: &mut Table, schema: &Table, assignment: &str) -> Result<()> {
    let (name, text) = assignment.split_once('=').context("it must look like section.key=value")?;
    let (name, text) = (name.trim(), text.trim());
    let (section, key) = name.split_once('.').context("it must look like section.key=value")?;
    ensure!(!section.is_empty() && !key.is_empty(), "it must look like section.key=value");
    let Value::Table(section_schema) = find_key(schema, section, section)? else {
        bail!("{section} is not a section");
    };
    let example = find_key(section_schema, key, name)?;
    let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut t| t.remove("value"));
    let value = match (parsed, example) {
        // A string needs no quotes, even if it looks like another type.
        (Some(Value::String(quoted)), Value::String(_)) => Value::String(quoted),
        (Some(Value::Integer(n)), _) if name == MICRO_BATCH => Value::Integer(n),
        (_, Value::String(_)) => Value::String(text.to_owned()),
        (Some(value), _) => value,
        (None, _) => Value::String(text.to_owned()),
    };
    ensure!(
        fits(name, &value, example),
        "key {name} is {value}, which is {}; it must be {}",
        type_name(&value),
        expected_type(name, example)
    );
    match table.entry(section).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => {
            inner.insert(key.to_owned(), value);
        }
        _ => bail!("{section} is not a section"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::batch::MicroBatchSize;
    use crate::optim::lr_schedule::Decay;

    /// Configuration files in a temporary directory. `run.toml` is the one to load.
    struct ConfigFiles(tempfile::TempDir);

    impl ConfigFiles {
        fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            ConfigFiles(dir)
        }

        fn load(&self, overrides: &[&str]) -> Result<Config> {
            let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
            Config::load(&self.0.path().join("run.toml"), &overrides)
        }

        fn error(&self, overrides: &[&str]) -> String {
            format!("{:#}", self.load(overrides).unwrap_err())
        }
    }

    fn one(text: &str) -> ConfigFiles {
        ConfigFiles::new(&[("run.toml", text)])
    }

    #[test]
    fn file_with_only_a_path_is_the_published_run() {
        let config = one("[data]\npath = 'owt'").load(&[]).unwrap();
        assert_eq!((config.model.num_senses, config.model.sense_intermediate_scale), (16, 4));
        assert!(config.model.scale_attn_by_inverse_layer_idx);
        assert_eq!((config.model.dropout, config.run.seed), (0.1, 1111));
        assert_eq!((config.optimizer.learning_rate, config.optimizer.weight_decay), (6e-4, 0.1));
        assert_eq!((config.schedule.warmup_steps, config.schedule.max_steps), (5_000, 100_000));
        assert_eq!((config.batch.tokens_per_step, config.data.sequence_length), (524_288, 512));
        assert_eq!((config.checkpoint.keep_last, config.checkpoint.keep_best), (2, 3));
    }

    #[test]
    fn keys_override_the_base_and_set_overrides_both() {
        let files = ConfigFiles::new(&[
            ("base.toml", "[model]\nn_embd = 64\nn_head = 4\nn_layer = 2\n[data]\npath = 'a'"),
            ("run.toml", "base = 'base.toml'\n[model]\nn_layer = 3\n"),
        ]);
        let config = files
            .load(&[
                "data.path=b",
                "optimizer.learning_rate=1",
                "batch.micro_batch_size=4",
                "schedule.decay=cosine",
                "run.name=\"x y\"",
                "optimizer.betas=[0.9, 0.95]",
                "run.precision = fp32",
                "logging.tensorboard=false",
            ])
            .unwrap();
        assert_eq!((config.model.n_embd, config.model.n_layer), (64, 3));
        assert_eq!((config.data.path.to_str(), config.run.name.as_str()), (Some("b"), "x y"));
        assert_eq!((config.optimizer.learning_rate, config.optimizer.betas), (1.0, (0.9, 0.95)));
        assert_eq!(
            (config.batch.micro_batch_size, config.schedule.decay),
            (MicroBatchSize::Sequences(4), Decay::Cosine)
        );
        assert!(!config.logging.tensorboard);
        assert_eq!(
            one("[data]\npath='x'").load(&["batch.micro_batch_size=auto", "run.name=2024"]).unwrap().run.name,
            "2024"
        );
    }

    #[test]
    fn data_path_is_optional_without_data() {
        let load = |text: &str| {
            let files = one(text);
            Config::load_without_data(&files.0.path().join("run.toml"), &["run.seed=3".to_owned()])
        };
        let config = load("[data]\nsequence_length = 64").unwrap();
        assert_eq!((config.data.path.to_str(), config.data.sequence_length, config.run.seed), (Some(""), 64, 3));
        assert_eq!(load("[data]\npath = 'owt'").unwrap().data.path.to_str(), Some("owt"));
        assert_eq!(load("").unwrap().data.sequence_length, 512);
        assert!(load("[data]\npat = 'owt'").unwrap_err().to_string().contains("invalid configuration"));
    }

    #[test]
    fn resolved_file_loads_to_the_same_configuration() {
        let config = one("[data]\npath = 'owt'\n[batch]\nmicro_batch_size = 8").load(&[]).unwrap();
        assert_eq!(one(&config.to_toml().unwrap()).load(&[]).unwrap(), config);
    }

    #[test]
    fn errors_name_key_and_remedy() {
        let unknown = one("[data]\npath='x'\n[optimizer]\nlearning_rat = 1.0").error(&[]);
        assert!(
            unknown.ends_with("unknown key optimizer.learning_rat (did you mean optimizer.learning_rate?)"),
            "{unknown}"
        );
        assert!(unknown.contains("run.toml"), "{unknown}");
        assert!(one("[optimiser]\n").error(&[]).contains("unknown key optimiser (did you mean optimizer?)"));
        let kind = one("[data]\npath='x'\n[model]\nn_embd = 'wide'").error(&[]);
        assert!(kind.contains("key model.n_embd is \"wide\", which is a string; it must be a whole number"), "{kind}");
        assert!(one("[model]\nn_embd = 1.5").error(&[]).contains("which is a number; it must be a whole number"));
        assert!(one("data = 3").error(&[]).contains("key data is 3, which is a whole number; it must be a section"));
        assert!(one("[batch]\nmicro_batch_size = true").error(&[]).contains("a whole number or \"auto\""));
        assert!(one("[optimizer]\nbetas = [0.9]").error(&[]).contains("must be a list of 2 numbers"));
        assert!(one("[data]\npath = \n").error(&[]).contains("is not valid TOML: line 2"));
        assert!(one("").error(&[]).contains("has no data.path"));
        let path = "[data]\npath='x'\n";
        assert!(one(&format!("{path}[schedule]\ndecay='sine'")).error(&[]).contains("sine"));
        assert!(one(&format!("{path}[batch]\nmicro_batch_size='most'")).error(&[]).contains("most"));
        assert!(one(path).error(&["optimizer.learning_rate=-1"]).contains("optimizer.learning_rate is -1"));
        assert!(one(path).error(&["run.seed=-1"]).contains("-1"));
        assert!(one(path).error(&["step_guard.spike_window=1"]).contains("step_guard.spike_window is 1"));
        assert!(
            one(path)
                .error(&["step_guard.skip_spikes=true", "step_guard.spike_window=0"])
                .contains("turns spike detection off")
        );
        assert!(one(path).error(&["model.n_embd=ten"]).contains("it must be a whole number"));
        assert!(one(path).error(&["model.n_emb=10"]).contains("did you mean model.n_embd?"));
        assert!(one(path).error(&["seed=10"]).contains("section.key=value"));
        assert!(one(path).error(&["data.sequence_length=513"]).contains("more than model.n_positions 512"));
    }

    #[test]
    fn missing_and_circular_bases_are_refused() {
        assert!(one("base = 'none.toml'").error(&[]).contains("none.toml: No such file"));
        assert!(one("base = 'run.toml'").error(&[]).contains("inherits from itself"));
        assert!(one("base = 3").error(&[]).contains("key base is 3"));
    }
}
