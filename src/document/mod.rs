//! TOML files that people write: text as a tree whose every key knows where it stands, and the list of everything that is
//! wrong with it, said at once.
//!
//! [`read`] parses the text and hands the tree to whoever knows what it means; [`values`] says what single values may
//! look like.

pub mod values;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Everything that is wrong with a file, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentErrors {
    path: PathBuf,
    /// Line, column (both from 1) and what is wrong there.
    found: Vec<(usize, usize, String)>,
    /// Of other files that belong to it.
    others: Vec<DocumentErrors>,
}

impl fmt::Display for DocumentErrors {
    /// One line for each: `path:line:col: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (line, column, message)) in self.found.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}:{line}:{column}: {message}", self.path.display())?;
        }
        for (index, other) in self.others.iter().enumerate() {
            if index > 0 || !self.found.is_empty() {
                f.write_str("\n")?;
            }
            write!(f, "{other}")?;
        }
        Ok(())
    }
}

impl std::error::Error for DocumentErrors {}

impl DocumentErrors {
    /// For a file of which nothing could be read.
    #[must_use]
    pub fn whole_file(path: &Path, message: String) -> Self {
        Self { path: path.to_owned(), found: vec![(1, 1, message)], others: Vec::new() }
    }

    /// What is wrong with several files, in one; nothing if nothing is.
    #[must_use]
    pub fn together(all: Vec<Self>) -> Option<Self> {
        let mut all = all.into_iter();
        let mut first = all.next()?;
        first.others.extend(all);
        Some(first)
    }
}

/// What `meaning` makes of a text, and what is wrong with it. A text that is not TOML in some places is read as far as it
/// goes, so that everything is said at once.
///
/// # Errors
/// When nothing can be made of it.
pub fn read<T>(
    path: &Path,
    text: &str,
    meaning: impl for<'d> FnOnce(&mut Section<'d>, &'d Complaints) -> Option<T>,
) -> Result<(T, Result<(), DocumentErrors>), DocumentErrors> {
    let complaints = Complaints::default();
    let (table, broken) = DeTable::parse_recoverable(text);
    for error in &broken {
        let span = error.span().unwrap_or_default();
        let message = match text.get(span.clone()) {
            Some(key) if error.message() == "duplicate key" => {
                format!("duplicate key \"{}\"", key.escape_debug())
            }
            _ => error.message().to_owned(),
        };
        complaints.add(span.start, message);
    }
    let mut document = Section::document(&table, &complaints, !broken.is_empty());
    let meant = meaning(&mut document, &complaints);
    document.finish();
    match (meant, complaints.settle(path, text)) {
        (Some(meant), said) => Ok((meant, said)),
        (None, said) => {
            said?;
            Err(DocumentErrors::whole_file(path, "makes no sense".to_owned()))
        }
    }
}

/// Collects errors by their place in the text.
#[derive(Debug, Default)]
pub struct Complaints {
    found: RefCell<BTreeSet<(usize, String)>>,
}

impl Complaints {
    /// Something is wrong at this byte of the text.
    pub fn add(&self, at: usize, message: impl Into<String>) {
        self.found.borrow_mut().insert((at, message.into()));
    }

    /// Ok if nobody complained.
    fn settle(self, path: &Path, text: &str) -> Result<(), DocumentErrors> {
        let found = self.found.into_inner();
        if found.is_empty() {
            return Ok(());
        }
        let found = found.into_iter().map(|(at, message)| {
            let (line, column) = place(text, at);
            (line, column, message)
        });
        Err(DocumentErrors { path: path.to_owned(), found: found.collect(), others: Vec::new() })
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
pub struct Found<T> {
    pub value: T,
    /// Bytes from the beginning of the text.
    pub at: usize,
}

/// One table of the file. Every key that is asked for is known; [`Section::finish`] complains about the others.
pub struct Section<'d> {
    /// Without its brackets, "class.shared"; empty for the whole file.
    name: String,
    at: usize,
    table: &'d DeTable<'d>,
    known: BTreeSet<&'static str>,
    complaints: &'d Complaints,
    /// The text does not parse: what seems to be missing may only be hidden by that.
    broken: bool,
    left: bool,
}

impl<'d> Section<'d> {
    fn document(table: &'d Spanned<DeTable<'d>>, complaints: &'d Complaints, broken: bool) -> Self {
        let name = String::new();
        Self { name, at: 0, table: table.get_ref(), known: BTreeSet::new(), complaints, broken, left: false }
    }

    fn child(&self, key: &str, at: usize, value: &'d DeValue<'d>) -> Option<Self> {
        let name = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        let Some(table) = value.as_table() else {
            self.complain(at, format!("[{name}]: expected a table, found {}", value.type_str()));
            return None;
        };
        let known = BTreeSet::new();
        Some(Self { name, at, table, known, complaints: self.complaints, broken: self.broken, left: false })
    }

    /// As it is written in the file, "[class.shared]".
    #[must_use]
    pub fn title(&self) -> String {
        if self.name.is_empty() { "file".to_owned() } else { format!("[{}]", self.name) }
    }

    /// Where it begins.
    #[must_use]
    pub fn at(&self) -> usize {
        self.at
    }

    /// Whether nothing stands in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Whether `key` is written in it, whatever its value.
    #[must_use]
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The text that is written for `key`, if it is one. Whatever it is, nobody complains.
    pub fn written(&mut self, key: &'static str) -> Option<&'d str> {
        self.known.insert(key);
        self.table.get(key)?.get_ref().as_str()
    }

    /// The table `[name]`, if it is there.
    pub fn section(&mut self, name: &'static str) -> Option<Section<'d>> {
        self.known.insert(name);
        let (key, value) = self.table.get_key_value(name)?;
        self.child(name, key.span().start, value.get_ref())
    }

    /// The tables `[[name]]`, or a list of tables in braces.
    pub fn tables(&mut self, name: &'static str) -> Vec<Section<'d>> {
        self.known.insert(name);
        let Some(value) = self.table.get(name) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            let message = format!("{name}: expected a list of tables, found {}", value.get_ref().type_str());
            self.complain(value.span().start, message);
            return Vec::new();
        };
        array.iter().filter_map(|entry| self.child(name, entry.span().start, entry.get_ref())).collect()
    }

    /// Every key of a table whose keys are names that the file chooses.
    pub fn entries<T>(
        self,
        convert: impl Fn(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Vec<(Found<&'d str>, Found<T>)> {
        let entries = self.table.iter().filter_map(|(key, value)| {
            let name = key.get_ref().as_ref();
            let found = self.convert(name, value, &convert)?;
            Some((Found { value: name, at: key.span().start }, found))
        });
        entries.collect()
    }

    /// The tables `[kind.<name>]`.
    pub fn sections(&mut self, kind: &'static str) -> Vec<(Found<&'d str>, Section<'d>)> {
        let Some(parent) = self.section(kind) else { return Vec::new() };
        let tables = parent.table.iter().filter_map(|(key, value)| {
            let (at, name) = (key.span().start, key.get_ref().as_ref());
            let section = parent.child(name, at, value.get_ref())?;
            Some((Found { value: name, at }, section))
        });
        tables.collect()
    }

    /// The value of `key` as `convert` understands it; `None` if it is not there or not understood.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        convert: impl FnOnce(&'d DeValue<'d>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        self.known.insert(key);
        let value = self.table.get(key)?;
        self.convert(key, value, convert)
    }

    /// Like [`Section::optional`], but not being there is an error.
    pub fn required<T>(
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
    pub fn defaulted<T>(
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
    pub fn list<T: PartialEq>(
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

    /// Complains that `key` should be there.
    pub fn missing(&self, key: &str) {
        if !self.broken {
            self.complain(self.at, format!("{}: \"{key}\" is missing", self.title()));
        }
    }

    /// What else is in it is nobody's concern now: [`Section::finish`] does not complain.
    pub fn leave_rest(&mut self) {
        self.left = true;
    }

    /// Complains about every key nobody asked for.
    pub fn finish(self) {
        if self.left {
            return;
        }
        for key in self.table.keys().filter(|key| !self.known.contains(key.get_ref().as_ref())) {
            let known: Vec<&str> = self.known.iter().copied().collect();
            let message = format!(
                "{}: unknown key \"{}\"; known are: {}",
                self.title(),
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

    /// Something is wrong at this byte of the text.
    pub fn complain(&self, at: usize, message: String) {
        self.complaints.add(at, message);
    }
}
