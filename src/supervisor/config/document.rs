//! The file as text and as a tree whose every key knows where it stands; and the list of everything wrong with it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    path: PathBuf,
    /// Line, column (both from 1) and what is wrong there.
    found: Vec<(usize, usize, String)>,
}

impl fmt::Display for ConfigErrors {
    /// One line for each: `path:line:col: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (line, column, message)) in self.found.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{line}:{column}: {message}", self.path.display())?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    /// For a file of which nothing could be read.
    pub(super) fn whole_file(path: &Path, message: String) -> Self {
        Self { path: path.to_owned(), found: vec![(1, 1, message)] }
    }
}

/// Collects errors by their place in the text.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    found: RefCell<BTreeSet<(usize, String)>>,
}

impl Complaints {
    pub(super) fn add(&self, at: usize, message: impl Into<String>) {
        self.found.borrow_mut().insert((at, message.into()));
    }

    /// Ok if nobody complained.
    pub(super) fn settle(self, path: &Path, text: &str) -> Result<(), ConfigErrors> {
        let found = self.found.into_inner();
        if found.is_empty() {
            return Ok(());
        }
        let found = found.into_iter().map(|(at, message)| {
            let (line, column) = place(text, at);
            (line, column, message)
        });
        Err(ConfigErrors { path: path.to_owned(), found: found.collect() })
    }
}

/// Line and column, from 1, of a byte offset; the column counts characters.
fn place(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at.min(text.len())).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).map_or(0, |line| line.chars().count());
    (before.matches('\n').count() + 1, column + 1)
}

/// A value and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) at: usize,
}

/// One table of the file. Every key that is asked for is known; [`Section::finish`] complains about the others.
pub(super) struct Section<'d> {
    /// As written in the file, "[class.shared]".
    title: String,
    at: usize,
    table: &'d DeTable<'d>,
    known: BTreeSet<&'static str>,
    complaints: &'d Complaints,
    /// The text does not parse: what seems to be missing may only be hidden by that.
    broken: bool,
}

impl<'d> Section<'d> {
    pub(super) fn document(
        table: &'d Spanned<DeTable<'d>>,
        complaints: &'d Complaints,
        broken: bool,
    ) -> Self {
        let title = "file".to_owned();
        Self { title, at: 0, table: table.get_ref(), known: BTreeSet::new(), complaints, broken }
    }

    fn child(&self, title: String, at: usize, value: &'d DeValue<'d>) -> Option<Self> {
        let Some(table) = value.as_table() else {
            self.complain(at, format!("{title}: expected a table, found {}", value.type_str()));
            return None;
        };
        let known = BTreeSet::new();
        Some(Self { title, at, table, known, complaints: self.complaints, broken: self.broken })
    }

    /// The table `[name]`, if it is there.
    pub(super) fn section(&mut self, name: &'static str) -> Option<Section<'d>> {
        self.known.insert(name);
        let (key, value) = self.table.get_key_value(name)?;
        self.child(format!("[{name}]"), key.span().start, value.get_ref())
    }

    /// The tables `[kind.<name>]`.
    pub(super) fn sections(&mut self, kind: &'static str) -> Vec<(Found<&'d str>, Section<'d>)> {
        let Some(parent) = self.section(kind) else { return Vec::new() };
        let tables = parent.table.iter().filter_map(|(key, value)| {
            let (at, name) = (key.span().start, key.get_ref().as_ref());
            let section = parent.child(format!("[{kind}.{name}]"), at, value.get_ref())?;
            Some((Found { value: name, at }, section))
        });
        tables.collect()
    }

    /// The value of `key` as `convert` understands it; `None` if it is not there or not understood.
    pub(super) fn optional<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        self.known.insert(key);
        let value = self.table.get(key)?;
        self.convert(key, value, convert)
    }

    /// Like [`Section::optional`], but not being there is an error.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        if !self.table.contains_key(key) {
            self.missing(key);
        }
        self.optional(key, convert)
    }

    /// Like [`Section::optional`], with what holds if it is not there.
    pub(super) fn defaulted<T>(
        &mut self,
        key: &'static str,
        default: T,
        convert: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        if self.table.contains_key(key) {
            self.optional(key, convert)
        } else {
            self.known.insert(key);
            Some(Found { value: default, at: self.at })
        }
    }

    /// A list, each entry at most once. An entry that is not understood is left out, with a complaint.
    pub(super) fn list<T: PartialEq>(
        &mut self,
        key: &'static str,
        convert: impl Fn(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<Vec<Found<T>>> {
        self.known.insert(key);
        let value = self.table.get(key)?;
        let at = value.span().start;
        let Some(array) = value.get_ref().as_array() else {
            self.complain(at, format!("{key}: expected a list, found {}", value.get_ref().type_str()));
            return None;
        };
        let mut list: Vec<Found<T>> = Vec::with_capacity(array.len());
        for entry in array.iter() {
            let Some(found) = self.convert(key, entry, &convert) else { continue };
            if list.iter().any(|earlier| earlier.value == found.value) {
                self.complain(found.at, format!("{key}: listed twice"));
            } else {
                list.push(found);
            }
        }
        Some(list)
    }

    pub(super) fn missing(&self, key: &str) {
        if !self.broken {
            self.complain(self.at, format!("{}: \"{key}\" is missing", self.title));
        }
    }

    /// Complains about every key nobody asked for.
    pub(super) fn finish(self) {
        for key in self.table.keys().filter(|key| !self.known.contains(key.get_ref().as_ref())) {
            let known: Vec<&str> = self.known.iter().copied().collect();
            let message = format!(
                "{}: unknown key \"{}\"; known are: {}",
                self.title,
                key.get_ref().escape_debug(),
                known.join(", ")
            );
            self.complain(key.span().start, message);
        }
    }

    fn convert<T>(
        &self,
        key: &str,
        value: &'d Spanned<DeValue<'d>>,
        convert: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        let at = value.span().start;
        if self.broken && value.span().is_empty() {
            // Not in the text: the parser put it where it found nothing it understood, and complained there.
            return None;
        }
        match convert(value.get_ref()) {
            Ok(value) => Some(Found { value, at }),
            Err(why) => {
                self.complain(at, format!("{key}: {why}"));
                None
            }
        }
    }

    fn complain(&self, at: usize, message: String) {
        self.complaints.add(at, message);
    }
}
