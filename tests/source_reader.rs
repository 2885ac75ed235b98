//! A reader of Rust sources for tests/structure.rs: the imports and types of a file, without the
//! code of tests. Sources are parsed into tokens and not compiled, so a name is resolved by the
//! `use` declarations alone.
//!
//! Scopes are those of files: if several declarations of a file bind one name, each is an import, and
//! paths that start with the name are resolved by the last one. A path in a `use` declaration that
//! starts with a name of a later declaration is taken as the path of another crate.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A source file in memory.
pub(crate) struct Source {
    /// Name of the crate's directory.
    pub(crate) package: String,
    /// Path relative to the crate's `src`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    pub(crate) fn full_path(&self) -> String {
        format!("crates/{}/src/{}", self.package, self.path)
    }
}

/// Segments of a path, from the root of the crate.
type ModulePath = Vec<String>;

/// A parsed source file.
#[derive(Default)]
struct Parsed {
    /// The module of the file.
    module: ModulePath,
    /// Names of the modules that are declared with `mod NAME;`.
    children: BTreeSet<String>,
    /// Children that are declared under `#[cfg(test)]`.
    test_children: BTreeSet<String>,
    /// Names that `use` declarations bind, with all their declarations in order.
    bindings: BTreeMap<String, Vec<Binding>>,
    /// Modules of `use MODULE::*`.
    globs: Vec<ModulePath>,
    /// Paths in the code, outside of `use` declarations, as they are written.
    paths: Vec<(ModulePath, ModulePath)>,
    /// Names of structs, enums, unions, traits and type aliases.
    types: Vec<String>,
    /// Names of the items of the file's module. Items in functions, and methods, are not included.
    items: BTreeSet<String>,
    /// All identifiers outside of `use` declarations.
    words: BTreeSet<String>,
}

/// A name that a `use` declaration binds.
struct Binding {
    /// Path of the item. It is `None` for an item of another crate.
    path: Option<ModulePath>,
    /// Whether the name is re-exported.
    is_public: bool,
}

/// The place of a group of tokens.
#[derive(Clone, Copy, PartialEq)]
enum Scope {
    Module,
    /// The body of an `impl` or a trait.
    Impl,
    /// The body of a function or of a type, or a group that is not a body.
    Inner,
}

/// The import of an item of `to` by `from`, as indexes of sources of the same crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ImportedPath {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Name of the item. It is `*` for all items of a module.
    pub(crate) item: String,
}

/// The sources of all crates.
pub(crate) struct Workspace {
    pub(crate) sources: Vec<Source>,
    parsed: Vec<Parsed>,
    /// Index of the file of each module, by package and module path.
    modules: BTreeMap<(String, ModulePath), usize>,
    /// Files that are compiled for tests only.
    test_files: BTreeSet<usize>,
}

impl Workspace {
    pub(crate) fn new(sources: Vec<Source>) -> Self {
        let parsed: Vec<Parsed> = sources.iter().map(parse).collect();
        let module = |(i, source): (usize, &Source)| ((source.package.clone(), parsed[i].module.clone()), i);
        let modules = sources.iter().enumerate().map(module).collect();
        let is_test = |i: &usize| {
            parsed.iter().zip(&sources).any(|(parent, source)| {
                source.package == sources[*i].package
                    && parsed[*i]
                        .module
                        .strip_prefix(parent.module.as_slice())
                        .is_some_and(|rest| rest.first().is_some_and(|child| parent.test_children.contains(child)))
            })
        };
        let test_files = (0..sources.len()).filter(is_test).collect();
        Workspace { sources, parsed, modules, test_files }
    }

    /// Whether a file is compiled for tests only.
    pub(crate) fn is_test(&self, source: &Source) -> bool {
        self.test_files.iter().any(|&i| std::ptr::eq(&self.sources[i], source))
    }

    /// Returns all imports between the files of each crate.
    pub(crate) fn imports(&self) -> BTreeSet<ImportedPath> {
        let files = (0..self.sources.len()).filter(|i| !self.test_files.contains(i));
        files.flat_map(|from| self.imports_of(from)).collect()
    }

    fn imports_of(&self, from: usize) -> Vec<ImportedPath> {
        let file = &self.parsed[from];
        let declared = file.bindings.iter().flat_map(|(name, bindings)| bindings.iter().map(move |b| (name, b)));
        // A re-export of an item below the file's module is not an import, if the file does not use it.
        let is_reexport = |binding: &Binding| {
            binding.is_public && binding.path.as_ref().is_some_and(|path| path.starts_with(&file.module))
        };
        let used = declared.filter(|(name, binding)| !is_reexport(binding) || file.words.contains(*name));
        let bound = used.filter_map(|(_, binding)| binding.path.clone());
        // A module that is bound to a name is not an import by itself. The paths that start with the
        // name are imports.
        let bound =
            bound.filter(|path| !self.modules.contains_key(&(self.sources[from].package.clone(), path.clone())));
        let written = file.paths.iter().filter_map(|(module, path)| file.absolute(module, path));
        let mut imports = Vec::new();
        for path in bound.chain(written) {
            if let Some((to, item)) = self.resolve(from, &path, 0) {
                imports.push(ImportedPath { from, to, item });
            }
        }
        for glob in &file.globs {
            if let Some((to, _)) = self.resolve(from, glob, 0) {
                imports.push(ImportedPath { from, to, item: "*".to_owned() });
            }
        }
        imports.retain(|import| import.to != from);
        imports
    }

    /// Returns the file that defines the item at a path, and the name of the item.
    fn resolve(&self, from: usize, path: &[String], depth: usize) -> Option<(usize, String)> {
        let package = &self.sources[from].package;
        let module = |n: &usize| self.modules.get(&(package.clone(), path[..*n].to_vec())).map(|file| (*file, *n));
        let lengths: Vec<usize> = (0..=path.len()).rev().collect();
        let (file, length) = lengths.iter().find_map(module)?;
        let Some(item) = path.get(length) else { return Some((file, "*".to_owned())) };
        let parsed = &self.parsed[file];
        if depth < 16 {
            if let Some(binding) = parsed.binding(item) {
                let full = [binding.path.as_deref()?, &path[length + 1..]].concat();
                return self.resolve(from, &full, depth + 1);
            }
            let has_item = |glob: &&ModulePath| {
                let target = self.modules.get(&(package.clone(), (*glob).clone()));
                target.is_some_and(|target| self.parsed[*target].items.contains(item))
            };
            if !parsed.items.contains(item)
                && let Some(glob) = parsed.globs.iter().find(has_item)
            {
                return self.resolve(from, &[glob.as_slice(), &path[length..]].concat(), depth + 1);
            }
        }
        Some((file, item.clone()))
    }

    /// Returns the names of all types, each with the path of its file.
    pub(crate) fn types(&self) -> Vec<(String, String)> {
        let files = self.parsed.iter().enumerate().filter(|(i, _)| !self.test_files.contains(i));
        let types = files.flat_map(|(i, file)| file.types.iter().map(move |name| (name, i)));
        types.map(|(name, i)| (name.clone(), self.sources[i].full_path())).collect()
    }
}

/// Returns the module of a file: `a/b.rs` and `a/b/mod.rs` are the module `a::b`.
fn module_of(path: &str) -> ModulePath {
    let stem = path.trim_end_matches(".rs");
    let mut module: ModulePath = stem.split('/').map(str::to_owned).collect();
    if ["mod", "lib", "main"].contains(&module.last().map_or("", String::as_str)) {
        module.pop();
    }
    module
}

fn parse(source: &Source) -> Parsed {
    let tokens: TokenStream = source.text.parse().unwrap_or_else(|error| panic!("{}: {error}", source.full_path()));
    let mut file = Parsed { module: module_of(&source.path), ..Parsed::default() };
    let module = file.module.clone();
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    file.find_children(&trees);
    file.read(&trees, &module, Scope::Module);
    file
}

fn is_ident(tree: Option<&TokenTree>, word: &str) -> bool {
    matches!(tree, Some(TokenTree::Ident(ident)) if ident == word)
}

fn is_punct(tree: Option<&TokenTree>, character: char) -> bool {
    matches!(tree, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

fn is_brace(tree: &TokenTree) -> bool {
    matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
}

/// Returns the identifier at an index.
fn name_at(trees: &[TokenTree], i: usize) -> Option<String> {
    match trees.get(i) {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

/// Whether `::` is at an index.
fn is_separator(trees: &[TokenTree], i: usize) -> bool {
    is_punct(trees.get(i), ':') && is_punct(trees.get(i + 1), ':')
}

/// If `#[cfg(test)]` is at an index, returns the index after its item and the name of its module.
fn skip_test_item(trees: &[TokenTree], i: usize) -> Option<(usize, Option<String>)> {
    let TokenTree::Group(attribute) = trees.get(i + 1)? else { return None };
    let text = attribute.stream().to_string().replace(' ', "");
    if !is_punct(trees.get(i), '#') || text != "cfg(test)" {
        return None;
    }
    let end = (i + 2..trees.len()).find(|&end| is_brace(&trees[end]) || is_punct(trees.get(end), ';'))?;
    let module = (i + 2..end).find(|&at| is_ident(trees.get(at), "mod")).and_then(|at| name_at(trees, at + 1));
    let end = if is_punct(trees.get(end + 1), ';') { end + 2 } else { end + 1 };
    Some((end, module))
}

impl Parsed {
    fn find_children(&mut self, trees: &[TokenTree]) {
        let mut i = 0;
        while i < trees.len() {
            if let Some((end, module)) = skip_test_item(trees, i) {
                self.test_children.extend(module);
                i = end;
                continue;
            }
            if is_ident(trees.get(i), "mod") && is_punct(trees.get(i + 2), ';') {
                self.children.extend(name_at(trees, i + 1));
            }
            i += 1;
        }
    }

    /// Reads the tokens of a group.
    fn read(&mut self, trees: &[TokenTree], module: &[String], scope: Scope) {
        let is_item_of_file = scope == Scope::Module && self.module == module;
        let (mut i, mut next_is_impl) = (0, false);
        while i < trees.len() {
            if let Some((end, _)) = skip_test_item(trees, i) {
                i = end;
                continue;
            }
            let TokenTree::Ident(ident) = &trees[i] else {
                if let TokenTree::Group(group) = &trees[i] {
                    let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                    let is_body = is_brace(&trees[i]);
                    let is_macro_call = i > 0 && is_punct(trees.get(i - 1), '!');
                    let inner_scope = match scope {
                        _ if is_body && next_is_impl => Scope::Impl,
                        Scope::Module if is_macro_call => Scope::Module,
                        _ => Scope::Inner,
                    };
                    self.read(&inner, module, inner_scope);
                    next_is_impl &= !is_body;
                }
                i += 1;
                continue;
            };
            let (word, name) = (ident.to_string(), name_at(trees, i + 1));
            if word == "pub" && matches!(trees.get(i + 1), Some(TokenTree::Group(_))) {
                i += 2; // The path of `pub(in PATH)` is not an import.
                continue;
            }
            // `impl` after `->`, `&` or `=` is a type.
            let starts_item = i == 0 || is_punct(trees.get(i - 1), ';') || !matches!(trees[i - 1], TokenTree::Punct(_));
            match (word.as_str(), name) {
                ("use", _) if starts_item && !is_punct(trees.get(i + 1), '<') => {
                    let end = (i..trees.len()).find(|&end| is_punct(trees.get(end), ';')).unwrap_or(trees.len());
                    let is_public = i > 0 && !is_brace(&trees[i - 1]) && is_visibility(trees, i);
                    self.read_use(&trees[i + 1..end], &[], module, is_public);
                    i = end;
                    continue;
                }
                ("mod", Some(name)) if trees.get(i + 2).is_some_and(is_brace) => {
                    let TokenTree::Group(body) = &trees[i + 2] else { unreachable!("a brace is a group") };
                    let inner: Vec<TokenTree> = body.stream().into_iter().collect();
                    self.read(&inner, &[module, &[name]].concat(), Scope::Module);
                    i += 3;
                    continue;
                }
                ("impl", _) if starts_item => next_is_impl = true,
                ("type", Some(_)) if scope == Scope::Impl => (),
                ("union", Some(_)) if trees.get(i + 2).is_none_or(|tree| !is_brace(tree)) => (),
                ("struct" | "enum" | "union" | "trait" | "type", Some(name)) => {
                    next_is_impl |= word == "trait";
                    self.types.push(name.clone());
                    self.items.extend(is_item_of_file.then_some(name));
                }
                ("fn" | "const" | "static", Some(name)) => self.items.extend(is_item_of_file.then_some(name)),
                ("macro_rules", _) => self.items.extend(name_at(trees, i + 2).filter(|_| is_item_of_file)),
                _ => (),
            }
            i = self.read_path(trees, i, module);
        }
    }

    /// Reads the identifier or path at an index and returns the index after it.
    fn read_path(&mut self, trees: &[TokenTree], start: usize, module: &[String]) -> usize {
        let mut path: Vec<String> = name_at(trees, start).into_iter().collect();
        let mut i = start + 1;
        while is_separator(trees, i) {
            let Some(name) = name_at(trees, i + 2) else { break };
            path.push(name);
            i += 3;
        }
        self.words.insert(path[0].clone());
        let is_continued = start >= 2 && is_separator(trees, start - 2);
        if path.len() > 1 && !is_continued {
            self.paths.push((module.to_vec(), path));
        }
        i
    }

    /// Reads a tree of `use` after `prefix`.
    fn read_use(&mut self, trees: &[TokenTree], prefix: &[String], module: &[String], is_public: bool) {
        for part in trees.split(|tree| is_punct(Some(tree), ',')) {
            let (mut path, mut alias, mut i) = (prefix.to_vec(), None, 0);
            while i < part.len() {
                match &part[i] {
                    TokenTree::Ident(ident) if ident == "as" => {
                        alias = name_at(part, i + 1);
                        i += 1;
                    }
                    TokenTree::Ident(ident) => path.push(ident.to_string()),
                    TokenTree::Group(group) => {
                        let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                        self.read_use(&inner, &path, module, is_public);
                        path.clear();
                    }
                    TokenTree::Punct(punct) if punct.as_char() == '*' => {
                        self.globs.extend(self.absolute(module, &path));
                        path.clear();
                    }
                    _ => (),
                }
                i += 1;
            }
            // `use a::{self, b}` binds `a`.
            if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                path.pop();
            }
            if let Some(name) = alias.or_else(|| path.last().cloned()) {
                let binding = Binding { path: self.absolute(module, &path), is_public };
                self.bindings.entry(name).or_default().push(binding);
            }
        }
    }

    /// Returns the last declaration of a name.
    fn binding(&self, name: &str) -> Option<&Binding> {
        self.bindings.get(name)?.last()
    }

    /// Returns a written path from the root of the crate. It is `None` for a path of another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<ModulePath> {
        let (first, mut rest) = path.split_first()?;
        let mut base = match first.as_str() {
            "crate" => Vec::new(),
            "self" => module.to_vec(),
            "super" => module.split_last()?.1.to_vec(),
            child if self.children.contains(child) => [self.module.as_slice(), std::slice::from_ref(first)].concat(),
            bound => self.binding(bound)?.path.clone()?,
        };
        while let Some((_, after)) = rest.split_first().filter(|(segment, _)| *segment == "super") {
            base.pop();
            rest = after;
        }
        base.extend_from_slice(rest);
        Some(base)
    }
}

/// Whether `pub` or `pub(...)` is before an index.
fn is_visibility(trees: &[TokenTree], i: usize) -> bool {
    is_ident(trees.get(i - 1), "pub")
        || (i > 1 && matches!(trees[i - 1], TokenTree::Group(_)) && is_ident(trees.get(i - 2), "pub"))
}
