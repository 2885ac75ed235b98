//! The names that a pickle may mention, and what each stands for here. Nothing is ever
//! imported or called: a name is a key into this table or an inert label.

use anyhow::{Result, bail};
use tch::Kind;

/// A name that means something here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::import) enum Global {
    /// `collections.OrderedDict`, which state dictionaries are.
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`: a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`: the tensor of a parameter.
    RebuildParameter,
    /// `torch.Size`: a tuple.
    Size,
    /// `torch.FloatStorage` and its like: the type of a storage's values.
    Storage(Kind),
    /// `torch.float32` and its like: named, never needed.
    Dtype,
}

/// Modules whose functions reach outside the process or run code. A checkpoint has no use
/// for them anywhere, so that a file that mentions one is refused whole.
const FORBIDDEN: [&str; 15] = [
    "os",
    "posix",
    "nt",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "pty",
    "runpy",
    "importlib",
    "ctypes",
    "commands",
    "pdb",
    "code",
    "webbrowser",
];

/// The same for functions of `builtins`.
const FORBIDDEN_BUILTINS: [&str; 7] = ["eval", "exec", "execfile", "compile", "__import__", "open", "input"];

/// The meaning of `module.name`; `None` where it has none here and stays an inert label.
///
/// # Errors
/// When the name runs code.
pub(super) fn resolve(module: &str, name: &str) -> Result<Option<Global>> {
    // Python 2's name, which protocol 2 still writes.
    let module = if module == "__builtin__" { "builtins" } else { module };
    let root = module.split('.').next().unwrap_or_default();
    if FORBIDDEN.contains(&root) || (module == "builtins" && FORBIDDEN_BUILTINS.contains(&name)) {
        bail!(
            "it names {}, which runs code (nothing was run here): do not open this file with Python's pickle or torch.load, and get the weights elsewhere",
            label(module, name)
        );
    }
    Ok(Some(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::RebuildParameter,
        ("torch", "Size") => Global::Size,
        ("torch", name) => match (storage_kind(name), is_dtype(name)) {
            (Some(kind), _) => Global::Storage(kind),
            (None, true) => Global::Dtype,
            (None, false) => return Ok(None),
        },
        _ => return Ok(None),
    }))
}

/// `module.name`, short and printable whatever the file holds.
pub(super) fn label(module: &str, name: &str) -> String {
    let shown: String = format!("{module}.{name}").escape_debug().take(80).collect();
    shown
}

fn storage_kind(name: &str) -> Option<Kind> {
    Some(match name {
        "FloatStorage" => Kind::Float,
        "HalfStorage" => Kind::Half,
        "BFloat16Storage" => Kind::BFloat16,
        "DoubleStorage" => Kind::Double,
        "LongStorage" => Kind::Int64,
        "IntStorage" => Kind::Int,
        "ShortStorage" => Kind::Int16,
        "CharStorage" => Kind::Int8,
        "ByteStorage" => Kind::Uint8,
        "BoolStorage" => Kind::Bool,
        _ => return None,
    })
}

fn is_dtype(name: &str) -> bool {
    ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_run_code_are_refused_under_either_pythons_name() {
        for (module, name) in [("os", "system"), ("posix", "system"), ("os.path", "join"), ("__builtin__", "eval")] {
            let error = resolve(module, name).unwrap_err().to_string();
            assert!(error.contains("which runs code"), "{error}");
        }
        assert!(resolve("builtins", "eval").unwrap_err().to_string().contains("builtins.eval"));
    }

    #[test]
    fn names_without_a_meaning_stay_labels() {
        for (module, name) in [("argparse", "Namespace"), ("torch", "load"), ("torch.storage", "_load_from_bytes")] {
            assert_eq!(resolve(module, name).unwrap(), None);
        }
        assert_eq!(resolve("torch", "HalfStorage").unwrap(), Some(Global::Storage(Kind::Half)));
        assert_eq!(label("a\u{1b}[2J", &"x".repeat(500)).len(), 80);
    }
}
