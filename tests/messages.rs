//! `docs/messages.md` lists each message that the module writes to nginx's error log, and no other.
//!
//! A message is a string in the source, with `…` in the place of each value. All strings that contain
//! words count, because a message is often put together far from where it is logged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::Lit;

/// Sources whose strings are for the status, for `ci/explain` or for SQL, and sources of tests.
const OTHER_SOURCES: [&str; 6] = [
    "src/explain.rs",
    "src/explain/",
    "pipeline/src/status.rs",
    "pipeline/src/status/",
    "pipeline/src/delivery/spool/schema.rs",
    "/tests",
];
/// What statements of SQL begin with.
const SQL: [&str; 6] = ["SELECT ", "INSERT ", "UPDATE ", "DELETE ", "PRAGMA ", "{SELECT} "];
/// Macros and functions whose words say that the code is wrong.
const ASSERTIONS: [&str; 5] = ["assert", "assert_eq", "debug_assert", "expect", "unreachable"];
/// Strings that are no messages of their own.
const NO_MESSAGES: [&str; 20] = [
    // They join a message with its target or its place.
    "target \"…\"",
    "\"tirreno_identity …\"",
    "target \"…\" …",
    "target \"…\": … in …",
    "spool: …: …",
    "… in …",
    "at …",
    // What `ci/explain` says.
    "\"status=\" does not hold",
    "\"…\" does not hold",
    // What becomes a fault before anybody reads it.
    "no TLS configured",
    "no host name",
    "a TLS record",
    "no HTTP status",
    // Formats, and a word of nginx.
    "%A, %d-%b-%y %H:%M:%S GMT",
    "%a %b %e %H:%M:%S %Y",
    "%Y-%m-%d %H:%M:%S%.3f",
    "%Y-%m-%d %H:%M:%S%.3f Z",
    "%Y-%m-%d %H:%M:%S%.f",
    "HTTP/1.… …",
    "logging request",
];
/// What commands in the pages begin with.
const COMMANDS: [&str; 7] =
    ["apt", "cargo", "getent", "promtool", "service", "sqlite3", "systemctl"];
/// Messages of nginx itself that the pages quote.
const NGINX: [&str; 5] = [
    "module … version … instead of …",
    "module … version 1028003 instead of …",
    "version … instead of …",
    "is not binary compatible",
    "mkdir() … failed",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The files below a directory whose names end with `extension`, with their contents.
fn files(below: &str, extension: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{below}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&path, extension));
        } else if path.ends_with(extension) {
            found.push((path, fs::read_to_string(entry.path()).unwrap()));
        }
    }
    found
}

/// The strings of a source, without those of tests, attributes and assertions.
fn strings(source: TokenStream, found: &mut Vec<String>) {
    let mut tokens = source.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                tokens.next_if(|next| next.to_string() == "!");
                let Some(TokenTree::Group(group)) =
                    tokens.next_if(|next| matches!(next, TokenTree::Group(_)))
                else {
                    continue;
                };
                if ["test", "cfg (test)"].contains(&group.stream().to_string().as_str()) {
                    let ends = |token: &TokenTree| match token {
                        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                        token => token.to_string() == ";",
                    };
                    tokens.find(ends);
                }
            }
            TokenTree::Ident(name) if ASSERTIONS.contains(&name.to_string().as_str()) => {
                tokens.next_if(|next| next.to_string() == "!");
                tokens.next_if(|next| matches!(next, TokenTree::Group(_)));
            }
            TokenTree::Group(group) => strings(group.stream(), found),
            TokenTree::Literal(literal) => match Lit::new(literal) {
                Lit::Str(text) => found.push(text.value()),
                Lit::CStr(text) => found.push(text.value().into_string().unwrap()),
                _ => {}
            },
            _ => {}
        }
    }
}

/// A format string with `…` in the place of its values. Other braces, as in `/{id}`, count as values, too.
fn pattern(format: &str) -> String {
    let mut pattern = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '{' | '}' if chars.next_if_eq(&c).is_some() => pattern.push(c),
            '{' if chars.clone().any(|c| c == '}') => {
                chars.find(|c| *c == '}');
                if !pattern.ends_with('…') {
                    pattern.push('…');
                }
            }
            c => pattern.push(c),
        }
    }
    pattern.strip_prefix("tirreno: ").unwrap_or(&pattern).trim().to_owned()
}

fn has_words(text: &str) -> bool {
    let letters = |word: &str| word.chars().filter(char::is_ascii_alphabetic).count();
    text.contains(' ') && text.split(' ').any(|word| letters(word) > 1)
}

/// All messages in the source, each with its file.
fn messages() -> Vec<(String, String)> {
    let sources = files("src", ".rs").into_iter().chain(files("pipeline/src", ".rs"));
    let mut messages = Vec::new();
    for (path, source) in sources {
        if OTHER_SOURCES.iter().any(|other| path.contains(other)) {
            continue;
        }
        let mut found = Vec::new();
        strings(source.parse().unwrap(), &mut found);
        let is_sql = |text: &str| SQL.iter().any(|start| text.trim_start().starts_with(start));
        found.retain(|text| !is_sql(text) && !text.starts_with("{SELECT}"));
        let patterns = found.iter().map(|text| pattern(text)).filter(|text| has_words(text));
        messages.extend(patterns.map(|pattern| (pattern, path.clone())));
    }
    messages
}

/// The code in a text of Markdown.
fn quotes(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(|text| text.replace("\\|", "|")).collect()
}

/// The messages that the page lists, in the first column of its tables.
fn listed() -> BTreeSet<String> {
    let page = fs::read_to_string(root().join("docs/messages.md")).unwrap();
    let rows = page.lines().filter_map(|line| line.strip_prefix("| "));
    rows.flat_map(|row| quotes(row.split(" | ").next().unwrap()))
        .map(|text| pattern(&text))
        .collect()
}

#[test]
fn the_page_lists_each_message() {
    let (messages, listed) = (messages(), listed());
    assert!(messages.len() > 300, "messages are gone: {messages:?}");
    let is_known = |text: &str| listed.contains(text) || NO_MESSAGES.contains(&text);
    let missing: Vec<_> = messages.iter().filter(|(text, _)| !is_known(text)).collect();
    assert!(missing.is_empty(), "docs/messages.md lacks {missing:#?}");
    let exists = |text: &str| messages.iter().any(|(message, _)| message == text);
    let gone: Vec<_> = listed.iter().filter(|text| !exists(text)).collect();
    assert!(gone.is_empty(), "no source says {gone:#?}");
    let gone: Vec<_> = NO_MESSAGES.into_iter().filter(|text| !exists(text)).collect();
    assert!(gone.is_empty(), "no source has {gone:#?}");
}

/// Whether a quote is a sentence, and neither a command nor a piece of a configuration.
fn is_sentence(quote: &str) -> bool {
    let first = quote.split(' ').next().unwrap_or_default();
    let is_word = |c: char| c.is_alphanumeric() || " ,:'\"….?".contains(c);
    quote.split(' ').count() > 2
        && quote.chars().all(is_word)
        && !first.chars().all(|c| c.is_ascii_uppercase())
        && !first.contains('.')
        && !COMMANDS.contains(&first)
}

#[test]
fn quoted_messages_exist() {
    let messages = messages();
    let mut wrong = Vec::new();
    let mut quoted = 0;
    let mut pages = [files("docs", ".md"), files("nginx-conf", ".md")].concat();
    for name in ["README.md", "SECURITY.md", "CONTRIBUTING.md"] {
        pages.push((name.into(), fs::read_to_string(root().join(name)).unwrap()));
    }
    for (path, page) in pages {
        // Without blocks, and with one line a paragraph.
        let text = page.split("```").step_by(2).collect::<String>().replace('\n', " ");
        for quote in quotes(&text) {
            if !is_sentence(&quote) || NGINX.contains(&quote.as_str()) {
                continue;
            }
            quoted += 1;
            // Parts of a message come from several strings.
            let is_said = |part: &str| messages.iter().any(|(message, _)| message.contains(part));
            let ends = |c: char| "…:;,".contains(c) || c.is_ascii_digit();
            if !quote.split(ends).all(|part| is_said(part.trim())) {
                wrong.push(format!("{path}: {quote}"));
            }
        }
    }
    assert!(wrong.is_empty(), "no source says {wrong:#?}");
    assert!(quoted > 20, "{quoted} quotes");
}
