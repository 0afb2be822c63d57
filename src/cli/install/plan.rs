//! What there is to do, from what there is and what there is to be. Nothing is changed here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::accounts::Accounts;
use super::host::{self, Run};
use super::manifest::{MANIFEST, Manifest, Placed};
use super::shipped::{CONF, Kind, PROGRAMS, Shipped, directories, units};
use super::steps::Step;
use super::tree::{Found, Tree};
use crate::artifact::Digest;

/// The programs before the last upgrade, all beside one another, so that they can install themselves again.
pub(super) const PREVIOUS: &str = "/usr/lib/portcullis/previous";
/// What dpkg placed, if the package is there.
const DPKG_LIST: &str = "/var/lib/dpkg/info/portcullis.list";
const DPKG_LIST_MAX: u64 = 1 << 20;

/// Everything that is in the way, said at once, before anything is done.
#[derive(Debug, thiserror::Error)]
#[error("{} in the way, nothing was done:\n  {}", count(.0), .0.join("\n  "))]
pub(super) struct Obstacles(pub(super) Vec<String>);

fn count(found: &[String]) -> String {
    if found.len() == 1 { "one thing is".to_owned() } else { format!("{} things are", found.len()) }
}

/// What to do, and what to say.
#[derive(Debug)]
pub(super) struct Plan<'s> {
    pub(super) steps: Vec<Step<'s>>,
    /// What stays as it is although one might expect something else.
    pub(super) notes: Vec<String>,
    /// Something was installed before.
    pub(super) upgrade: bool,
    /// There are programs to go back to.
    pub(super) previous: bool,
    /// Users and directories are made by the steps.
    pub(super) accounts: bool,
}

/// How `shipped` gets into `tree`.
pub(super) fn install<'s>(tree: &Tree, shipped: &'s [Shipped], start: bool) -> Result<Plan<'s>, Obstacles> {
    let mut survey = Survey::new(tree);
    survey.look_at_surroundings(start);
    for what in shipped {
        survey.look_at(what);
    }
    survey.keep_previous();
    survey.look_at_obsolete();
    survey.look_at_directories(shipped);
    if !survey.obstacles.is_empty() {
        return Err(Obstacles(survey.obstacles));
    }
    Ok(survey.plan(start))
}

/// What has been found out so far.
struct Survey<'t, 's> {
    tree: &'t Tree,
    before: Option<Manifest>,
    accounts: Accounts,
    obstacles: Vec<String>,
    notes: Vec<String>,
    /// What may be there while we are at work, and what will be there at the end.
    meanwhile: Vec<Placed>,
    after: Vec<Placed>,
    /// In their order.
    make: Vec<PathBuf>,
    directories: BTreeSet<PathBuf>,
    keep: Vec<Step<'s>>,
    place: Vec<Step<'s>>,
    remove: Vec<Step<'s>>,
    programs_change: bool,
}

impl<'t, 's> Survey<'t, 's> {
    fn new(tree: &'t Tree) -> Self {
        let mut obstacles = Vec::new();
        let before = Manifest::read(tree).unwrap_or_else(|error| {
            obstacles.push(error.to_string());
            None
        });
        let accounts = Accounts::read(tree).unwrap_or_else(|error| {
            obstacles.push(error.to_string());
            Accounts::default()
        });
        obstacles.extend(accounts.taken.iter().cloned());
        Self {
            tree,
            before,
            accounts,
            obstacles,
            notes: Vec::new(),
            meanwhile: Vec::new(),
            after: Vec::new(),
            make: Vec::new(),
            directories: BTreeSet::new(),
            keep: Vec::new(),
            place: Vec::new(),
            remove: Vec::new(),
            programs_change: false,
        }
    }

    fn look_at_surroundings(&mut self, start: bool) {
        if self.tree.is_host() && !self.tree.is_roots() {
            self.obstacle(
                "install into \"/\": not root; run it as root, or into a directory of your own with --root",
            );
        }
        if start && !host::is_booted() {
            self.obstacle("start the units: systemd does not run here; leave --start out");
        }
        match self.tree.text(Path::new(DPKG_LIST), DPKG_LIST_MAX) {
            // After `apt remove` it is still there: the configuration is dpkg's until `apt purge`, and so are the users.
            Ok(Some(_)) => self.obstacle(
                "install over the package \"portcullis\": dpkg would take away what it knows, even after apt remove; apt \
                 purge it first (copy what you need of /etc/portcullis)",
            ),
            Ok(None) => {}
            Err(error) => self.obstacle(error),
        }
        for run in self.commands(start) {
            if let Err(error) = run.check() {
                self.obstacle(error);
            }
        }
    }

    fn look_at(&mut self, what: &'s Shipped) {
        let before = self.placed(&what.path);
        if what.kind == Kind::Configuration {
            match self.tree.is_there(&what.path) {
                Ok(true) => {
                    self.notes.push(format!("left alone: {} is there already", what.path.display()));
                    // Removed with --purge only, so it does not matter what is in it by now.
                    self.stays(before);
                }
                Ok(false) => self.place_at(what, what.path.clone(), before),
                Err(error) => self.obstacle(error),
            }
            return;
        }
        match (self.tree.look(&what.path), before) {
            (Err(error), _) => self.obstacle(error),
            (Ok(Found::Nothing), before) => self.place_at(what, what.path.clone(), before),
            (Ok(Found::File { .. }), None) => {
                let path = self.tree.shown(&what.path);
                self.obstacle(format!(
                    "place {path:?}: there is a file that was not installed by this; move it away"
                ));
            }
            (Ok(Found::File { digest, mode }), Some(before)) => {
                if digest == what.digest && mode == what.mode() {
                    self.stays(Some(Placed { digests: vec![digest], ..before }));
                } else if what.kind == Kind::Program
                    || digest == what.digest
                    || before.digests.contains(&digest)
                {
                    self.programs_change |= what.kind == Kind::Program && digest != what.digest;
                    self.place_at(what, what.path.clone(), Some(before));
                } else {
                    self.look_at_edited(what, before);
                }
            }
        }
    }

    /// A text that the administrator changed stays; where ours is another one than it was, it is placed beside it.
    fn look_at_edited(&mut self, what: &'s Shipped, before: Placed) {
        let path = what.path.display();
        if before.digests.contains(&what.digest) {
            self.notes.push(format!("left alone: {path} was changed here"));
            self.stays(Some(before));
            return;
        }
        self.notes.push(format!("left alone: {path} was changed here; the new one is {path}.new"));
        self.stays(Some(before));
        let mut aside = what.path.clone().into_os_string();
        aside.push(".new");
        let aside = PathBuf::from(aside);
        let before = self.placed(&aside);
        match self.tree.look(&aside) {
            Ok(Found::File { digest, .. }) if digest == what.digest && before.is_some() => self.stays(before),
            Ok(Found::File { .. }) if before.is_none() => {
                let path = self.tree.shown(&aside);
                self.obstacle(format!(
                    "place {path:?}: there is a file that was not installed by this; move it away"
                ));
            }
            Ok(_) => self.place_at(what, aside, before),
            Err(error) => self.obstacle(error),
        }
    }

    /// The programs that are about to be replaced, all or none: a set of one version.
    fn keep_previous(&mut self) {
        let placed = self.before.as_ref().map(|before| before.files.clone()).unwrap_or_default();
        let is_previous = |placed: &Placed| placed.path.parent() == Some(Path::new(PREVIOUS));
        if !self.programs_change {
            placed.into_iter().filter(is_previous).for_each(|placed| self.stays(Some(placed)));
            return;
        }
        for program in placed.iter().filter(|placed| is_program(&placed.path)) {
            let (Ok(Found::File { digest, .. }), Some(name)) =
                (self.tree.look(&program.path), program.path.file_name())
            else {
                continue;
            };
            let to = Path::new(PREVIOUS).join(name);
            let before = self.placed(&to);
            // An upgrade that was cut short has kept what it replaced; what it placed is not the previous one.
            let cut_short = program.digests.len() > 1 && program.digests.first() != Some(&digest);
            if cut_short {
                self.stays(before);
                continue;
            }
            if let Err(error) = self.tree.look(&to) {
                self.obstacle(error);
            }
            self.keep.push(Step::Keep { from: program.path.clone(), to: to.clone(), digest });
            self.will_be(to, digest, before);
        }
    }

    /// What an earlier version placed and this one does not have.
    fn look_at_obsolete(&mut self) {
        let placed = self.before.as_ref().map(|before| before.files.clone()).unwrap_or_default();
        for old in placed {
            if self.after.iter().any(|after| after.path == old.path) {
                continue;
            }
            match self.tree.look(&old.path) {
                Ok(Found::Nothing) => {}
                Ok(Found::File { digest, .. }) if old.digests.contains(&digest) => {
                    self.remove.push(Step::Remove(old.path.clone()));
                    self.meanwhile.push(old);
                }
                Ok(Found::File { .. }) => {
                    self.notes.push(format!("left alone: {} was changed here", old.path.display()));
                }
                Err(error) => self.notes.push(format!("left alone: {error}")),
            }
        }
    }

    /// Those that files need are made now, the others by systemd-tmpfiles.
    fn look_at_directories(&mut self, shipped: &[Shipped]) {
        let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
        let files = shipped.iter().map(|what| what.path.as_path()).chain([Path::new(MANIFEST)]);
        let kept = self.keep.iter().filter_map(|step| match step {
            Step::Keep { to, .. } => Some(to.as_path()),
            _ => None,
        });
        for file in files.chain(kept) {
            needed
                .extend(file.ancestors().skip(1).filter(|above| above.parent().is_some()).map(PathBuf::from));
        }
        let later = directories();
        for path in needed.iter().chain(later.iter().filter(|path| !needed.contains(*path))) {
            match self.tree.has_directory(path) {
                Ok(true) => {}
                Ok(false) => {
                    if needed.contains(path) {
                        self.make.push(path.clone());
                    }
                    self.directories.insert(path.clone());
                }
                // A class's cache is its own and nobody else's: systemd-tmpfiles knows what to think of it.
                Err(_) if !needed.contains(path) => {}
                Err(error) => self.obstacle(error),
            }
        }
        // A link on the way to many files is one obstacle.
        let mut seen = BTreeSet::new();
        self.obstacles.retain(|text| seen.insert(text.clone()));
        if let Some(before) = &self.before {
            self.directories.extend(before.directories.iter().cloned());
        }
    }

    fn plan(self, start: bool) -> Plan<'s> {
        let commands = self.commands(start);
        let (users, groups) = self.made();
        let directories: Vec<PathBuf> = self.directories.into_iter().collect();
        let meanwhile = Manifest::new(self.meanwhile, directories.clone(), users.clone(), groups.clone());
        let after = Manifest::new(self.after, directories, users, groups);
        let previous = after.files.iter().any(|placed| placed.path.starts_with(PREVIOUS));
        // As soon as it can be written, so that what fails after that can be taken away again.
        let (first, later): (Vec<PathBuf>, Vec<PathBuf>) =
            self.make.into_iter().partition(|path| Path::new(MANIFEST).starts_with(path));
        let mut steps: Vec<Step<'s>> = first.into_iter().map(Step::MakeDirectory).collect();
        let changes = [&self.keep, &self.place, &self.remove].iter().any(|steps| !steps.is_empty());
        if changes {
            steps.push(Step::Record(meanwhile));
        }
        steps.extend(later.into_iter().map(Step::MakeDirectory));
        steps.extend(self.keep.into_iter().chain(self.place).chain(self.remove));
        if changes || self.before.as_ref() != Some(&after) {
            steps.push(Step::Record(after));
        }
        let accounts = !commands.is_empty();
        steps.extend(commands.into_iter().map(Step::Run));
        Plan { steps, notes: self.notes, upgrade: self.before.is_some(), previous, accounts }
    }

    /// Of the host, or of an image that is a whole system. What is only a directory of files gets its users and
    /// directories when it is booted.
    fn commands(&self, start: bool) -> Vec<Run> {
        if !self.tree.is_roots() || !(self.tree.is_host() || self.accounts.are_there) {
            return Vec::new();
        }
        let mut commands = vec![
            Run::new("systemd-sysusers", [CONF]).within("--root", self.tree.at()),
            Run::new("systemd-tmpfiles", ["--create", CONF]).within("--root", self.tree.at()),
        ];
        if self.tree.is_host() && host::is_booted() {
            commands.push(Run::new("systemctl", ["daemon-reload"]));
            if start {
                let all = units();
                commands.push(Run::new("systemctl", ["enable"].into_iter().chain(all)));
                // Sockets that are there already stay as they are, and so does who waits in them.
                commands.push(Run::new("systemctl", ["start"].into_iter().chain(all.into_iter().take(2))));
                commands.push(Run::new("systemctl", ["restart", "portcullis.service"]));
            }
        }
        commands
    }

    /// Users and groups that are ours to take away again: made by this installation, or by the one before.
    fn made(&self) -> (Vec<String>, Vec<String>) {
        let all = |missing: &[String], before: Option<&Vec<String>>| -> Vec<String> {
            let all: BTreeSet<&String> = missing.iter().chain(before.into_iter().flatten()).collect();
            all.into_iter().cloned().collect()
        };
        let before = self.before.as_ref();
        (
            all(&self.accounts.users, before.map(|before| &before.users)),
            all(&self.accounts.groups, before.map(|before| &before.groups)),
        )
    }

    fn placed(&self, path: &Path) -> Option<Placed> {
        self.before.as_ref().and_then(|before| before.placed(path)).cloned()
    }

    fn place_at(&mut self, what: &'s Shipped, at: PathBuf, before: Option<Placed>) {
        let configuration = what.kind == Kind::Configuration;
        self.will_be(at.clone(), what.digest, before);
        for list in [&mut self.meanwhile, &mut self.after] {
            if let Some(placed) = list.last_mut() {
                placed.configuration = configuration;
            }
        }
        self.place.push(Step::Place { what, at });
    }

    fn will_be(&mut self, path: PathBuf, digest: Digest, before: Option<Placed>) {
        let mut digests = before.map(|before| before.digests).unwrap_or_default();
        if !digests.contains(&digest) {
            digests.push(digest);
        }
        self.meanwhile.push(Placed { path: path.clone(), digests, configuration: false });
        self.after.push(Placed { path, digests: vec![digest], configuration: false });
    }

    fn stays(&mut self, placed: Option<Placed>) {
        if let Some(placed) = placed {
            self.meanwhile.push(placed.clone());
            self.after.push(placed);
        }
    }

    fn obstacle(&mut self, what: impl ToString) {
        self.obstacles.push(what.to_string());
    }
}

/// One that runs, not one that is kept to go back to.
fn is_program(path: &Path) -> bool {
    let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("portcullis"));
    named && [Path::new("/usr/bin"), Path::new(PROGRAMS)].iter().any(|place| path.parent() == Some(*place))
}
