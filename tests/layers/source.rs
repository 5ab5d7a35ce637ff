//! A source file as tokens: its modules, their imports, the paths in their code, and its functions.
//!
//! Tokens, unlike lines of text, cannot be confused with comments and strings, and unlike a syntax
//! tree they include the arguments of macros.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Segments of a path: of a module from the crate's root, or as written in the code.
pub type Segments = Vec<String>;

/// A source file.
pub struct Source {
    /// Its path, as messages show it.
    pub path: PathBuf,
    /// Its module, from the crate's root.
    pub module: Segments,
    pub tokens: Vec<TokenTree>,
}

/// A module, which is a file or a part of one.
pub struct Module {
    pub path: Segments,
    pub file: PathBuf,
    /// Names defined in it.
    pub items: BTreeSet<String>,
    pub imports: Vec<Import>,
    /// Paths in its code, each with its line.
    pub paths: Vec<(Segments, usize)>,
}

/// A leaf of a `use` declaration.
pub struct Import {
    /// The name that it binds; `None` if it is a glob.
    pub name: Option<String>,
    pub path: Segments,
    pub line: usize,
}

/// A function with a body.
pub struct Function {
    pub name: String,
    pub line: usize,
    /// From the line of `fn` to that of the closing brace.
    pub lines: usize,
}

impl Source {
    /// # Panics
    /// If `text` does not lex as Rust.
    pub fn new(path: PathBuf, module: Segments, text: &str) -> Self {
        let stream: TokenStream =
            text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self { path, module, tokens: stream.into_iter().collect() }
    }

    /// The modules of the file, the file's own first.
    pub fn modules(&self) -> Vec<Module> {
        let mut modules = vec![self.module(self.module.clone())];
        self.scan(&self.tokens, 0, &mut modules);
        modules
    }

    fn module(&self, path: Segments) -> Module {
        let (items, imports, paths) = Default::default();
        Module { path, file: self.path.clone(), items, imports, paths }
    }

    /// Add what `tokens` contain to the module `at` and, where they nest modules, to new ones.
    fn scan(&self, tokens: &[TokenTree], at: usize, modules: &mut Vec<Module>) {
        let mut i = 0;
        while i < tokens.len() {
            let rest = &tokens[i..];
            i += 1;
            match &rest[0] {
                TokenTree::Group(group) => self.scan(&inside(group), at, modules),
                // A field or a method, which starts no path; `..` may precede one.
                TokenTree::Punct(p) if p.as_char() == '.' => {
                    let range = is_punct(rest.get(1), '.');
                    i += if range { 1 } else { path_at(&rest[1..]).1 };
                }
                // The tail of `<T as Trait>::name`, or a path that starts with another crate.
                TokenTree::Punct(_) if is_separator(rest) => i += 1 + path_at(&rest[2..]).1,
                TokenTree::Ident(word) => match (word.to_string().as_str(), rest.get(1)) {
                    ("use", next) if !is_punct(next, '<') => {
                        let end = rest.iter().position(|t| is_punct(Some(t), ';'));
                        let end = end.unwrap_or(rest.len());
                        import(&rest[1..end], Vec::new(), &mut modules[at].imports);
                        i += end - 1;
                    }
                    ("mod", Some(TokenTree::Ident(name))) => {
                        i += 1;
                        if let Some(TokenTree::Group(body)) = rest.get(2) {
                            let mut path = modules[at].path.clone();
                            path.push(name.to_string());
                            modules.push(self.module(path));
                            self.scan(&inside(body), modules.len() - 1, modules);
                            i += 1;
                        }
                    }
                    (
                        "fn" | "struct" | "enum" | "union" | "trait" | "type" | "const" | "static",
                        Some(TokenTree::Ident(name)),
                    ) => {
                        modules[at].items.insert(name.to_string());
                    }
                    _ => {
                        let (path, length) = path_at(rest);
                        if path.len() > 1 {
                            modules[at].paths.push((path, word.span().start().line));
                        }
                        i += length - 1;
                    }
                },
                _ => {}
            }
        }
    }
}

/// The tokens in a group.
pub fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// Whether `token` is this punctuation character.
pub fn is_punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(p)) if p.as_char() == c)
}

fn is_separator(tokens: &[TokenTree]) -> bool {
    is_punct(tokens.first(), ':') && is_punct(tokens.get(1), ':')
}

/// The path that `tokens` start with, up to generic arguments, and how many tokens it takes.
fn path_at(tokens: &[TokenTree]) -> (Segments, usize) {
    let mut path = Vec::new();
    let mut length = 0;
    while let Some(TokenTree::Ident(segment)) = tokens.get(length) {
        path.push(segment.to_string());
        length += 1;
        match tokens.get(length..) {
            Some(rest @ [_, _, TokenTree::Ident(_), ..]) if is_separator(rest) => length += 2,
            _ => break,
        }
    }
    (path, length)
}

/// Add the leaves of the use tree `tokens`, whose groups are behind `prefix`.
fn import(tokens: &[TokenTree], prefix: Segments, found: &mut Vec<Import>) {
    if is_separator(tokens) {
        return; // Of another crate.
    }
    let (mut path, length) = path_at(tokens);
    path.splice(0..0, prefix);
    let mut rest = &tokens[length..];
    if is_separator(rest) {
        rest = &rest[2..];
    }
    match rest {
        [TokenTree::Group(group), ..] => {
            for tree in inside(group).split(|t| is_punct(Some(t), ',')) {
                import(tree, path.clone(), found);
            }
        }
        [star @ TokenTree::Punct(_), ..] => {
            found.push(Import { name: None, path, line: star.span().start().line });
        }
        _ => {
            let Some(first) = tokens.first() else { return };
            if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
                path.pop();
            }
            let name = match rest {
                [_, TokenTree::Ident(alias)] => Some(alias.to_string()),
                _ => path.last().cloned(),
            };
            found.push(Import { name, path, line: first.span().start().line });
        }
    }
}

/// The files that `tokens` move elsewhere by `#[path = "file"] mod name;`, as (file, name).
pub fn moved(tokens: &[TokenTree]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut file = None;
    for (i, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) if is_punct(i.checked_sub(1).map(|i| &tokens[i]), '#') => {
                if let [TokenTree::Ident(word), _, TokenTree::Literal(text)] = &inside(group)[..]
                    && word == "path"
                {
                    file = Some(text.to_string().trim_matches('"').to_owned());
                }
            }
            TokenTree::Ident(word) if word == "mod" => {
                if let (Some(file), Some(TokenTree::Ident(name))) = (file.take(), tokens.get(i + 1))
                {
                    found.push((file, name.to_string()));
                }
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => file = None,
            _ => {}
        }
    }
    found
}

/// The functions in `tokens`, nested ones too.
pub fn functions(tokens: &[TokenTree], found: &mut Vec<Function>) {
    for (i, token) in tokens.iter().enumerate() {
        if let TokenTree::Group(group) = token {
            functions(&inside(group), found);
        }
        let [TokenTree::Ident(word), TokenTree::Ident(name), signature @ ..] = &tokens[i..] else {
            continue;
        };
        if word != "fn" {
            continue;
        }
        let body = signature.iter().take_while(|t| !is_punct(Some(t), ';')).find_map(|t| match t {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
            _ => None,
        });
        if let Some(body) = body {
            let line = word.span().start().line;
            let lines = body.span_close().end().line - line + 1;
            found.push(Function { name: name.to_string(), line, lines });
        }
    }
}

/// `tokens` without the items that are compiled for tests only.
pub fn without_tests(tokens: &[TokenTree]) -> Vec<TokenTree> {
    let mut kept = Vec::new();
    let mut rest = tokens;
    while let [token, tail @ ..] = rest {
        rest = tail;
        if is_punct(Some(token), '#')
            && tail.first().is_some_and(|attribute| {
                let attribute = attribute.to_string().replace(' ', "");
                attribute.starts_with("[cfg(test") || attribute.starts_with("[cfg(all(test")
            })
        {
            let ends = |t: &TokenTree| match t {
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                other => is_punct(Some(other), ';'),
            };
            rest = &tail[tail.iter().position(ends).map_or(tail.len(), |end| end + 1)..];
        } else {
            kept.push(match token {
                TokenTree::Group(group) => {
                    let kept = without_tests(&inside(group)).into_iter().collect();
                    Group::new(group.delimiter(), kept).into()
                }
                other => other.clone(),
            });
        }
    }
    kept
}

/// Whether `holds` for some token of `tokens`, given with those behind it, or of a group in them.
pub fn any(tokens: &[TokenTree], holds: &impl Fn(&[TokenTree]) -> bool) -> bool {
    (0..tokens.len()).any(|i| {
        holds(&tokens[i..])
            || matches!(&tokens[i], TokenTree::Group(group) if any(&inside(group), holds))
    })
}
