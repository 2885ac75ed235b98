//! The classes and functions that a pickle may refer to, and their meaning for the import. Nothing
//! is imported or called: a name is either in this table, or an inert label.

use anyhow::{Result, bail};
use tch::Kind;

/// A supported class or function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::import) enum Global {
    /// `collections.OrderedDict`, the class of state dictionaries.
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and `_rebuild_tensor_v2`, which return a view of a storage.
    RebuildTensor,
    /// `torch._utils._rebuild_parameter`, which returns the tensor of a parameter.
    RebuildParameter,
    /// `torch.Size`, a tuple.
    Size,
    /// `torch.FloatStorage` and similar classes: the type of the values of a storage.
    Storage(Kind),
    /// `torch.float32` and similar names, which no import needs.
    Dtype,
}

/// Modules with functions that run code or access the system. No checkpoint needs them, so a file
/// that refers to one is rejected.
const FORBIDDEN_MODULES: [&str; 15] = [
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

/// Functions of `builtins` that run code or access the system.
const FORBIDDEN_BUILTINS: [&str; 7] = ["eval", "exec", "execfile", "compile", "__import__", "open", "input"];

/// Returns the meaning of `module.name`; `None` if it is not supported and stays an inert label.
///
/// # Errors
/// The name refers to a function that runs code.
pub(super) fn resolve(module: &str, name: &str) -> Result<Option<Global>> {
    // The name in Python 2, which protocol 2 still writes.
    let module = if module == "__builtin__" { "builtins" } else { module };
    let root = module.split('.').next().unwrap_or_default();
    if FORBIDDEN_MODULES.contains(&root) || (module == "builtins" && FORBIDDEN_BUILTINS.contains(&name)) {
        bail!(
            "it refers to {}, which runs code (nothing was executed): do not open this file with Python's pickle or torch.load, and get the weights from another source",
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

/// Returns `module.name` in at most 80 printable characters.
pub(super) fn label(module: &str, name: &str) -> String {
    format!("{module}.{name}").escape_debug().take(80).collect()
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
    fn names_that_run_code_are_rejected_in_both_python_versions() {
        for (module, name) in [("os", "system"), ("posix", "system"), ("os.path", "join"), ("__builtin__", "eval")] {
            let error = resolve(module, name).unwrap_err().to_string();
            assert!(error.contains("which runs code"), "{error}");
        }
        assert!(resolve("builtins", "eval").unwrap_err().to_string().contains("builtins.eval"));
    }

    #[test]
    fn unsupported_names_stay_labels() {
        for (module, name) in [("argparse", "Namespace"), ("torch", "load"), ("torch.storage", "_load_from_bytes")] {
            assert_eq!(resolve(module, name).unwrap(), None);
        }
        assert_eq!(resolve("torch", "HalfStorage").unwrap(), Some(Global::Storage(Kind::Half)));
        assert_eq!(label("a\u{1b}[2J", &"x".repeat(500)).len(), 80);
    }
}
