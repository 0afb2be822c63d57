//! The users that systemd-sysusers makes, and whether somebody has their names or numbers already.

use std::ops::RangeInclusive;
use std::path::Path;

use super::shipped::SYSUSERS;
use super::tree::{Tree, TreeError};
use crate::cli::terminal::printable;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// Longest list of users that is read, bytes.
const LIST_MAX: u64 = 16 << 20;

/// The numbers that a system gives to its services.
const SYSTEM: RangeInclusive<u32> = 1..=999;
/// What a user has for a shell who cannot log in.
const NO_SHELLS: [&str; 2] = ["/nologin", "/false"];

/// A user to be, with a group of the same name and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct User {
    name: &'static str,
    /// None: whichever is free.
    number: Option<u32>,
}

/// What is in the tree's lists, of those that we are going to need.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accounts {
    /// Whether it has such lists: it is a system, and not only a directory for files.
    pub(super) are_there: bool,
    /// Users that have to be made.
    pub(super) users: Vec<String>,
    /// And groups: one may be there without the other.
    pub(super) groups: Vec<String>,
    /// Who is in the way.
    pub(super) taken: Vec<String>,
}

impl Accounts {
    pub(super) fn read(tree: &Tree) -> Result<Self, TreeError> {
        let users = tree.text(Path::new(PASSWD), LIST_MAX)?;
        let groups = tree.text(Path::new(GROUP), LIST_MAX)?;
        let mut accounts = Self::compare(users.as_deref().unwrap_or(""), groups.as_deref().unwrap_or(""));
        accounts.are_there = users.is_some();
        Ok(accounts)
    }

    fn compare(users: &str, groups: &str) -> Self {
        let mut accounts = Self::default();
        for wanted in wanted() {
            match find(users, |name, _| name == wanted.name) {
                None => accounts.users.push(wanted.name.to_owned()),
                Some((name, number)) => accounts.taken.extend(unfit(name, number, wanted, users)),
            }
            if find(groups, |name, _| name == wanted.name).is_none() {
                accounts.groups.push(wanted.name.to_owned());
            }
            let Some(number) = wanted.number else { continue };
            for (kind, list) in [("user", users), ("group", groups)] {
                let other = find(list, |name, has| (name == wanted.name) != (has == number));
                if let Some((name, has)) = other {
                    accounts.taken.push(format!(
                        "make {kind} \"{}\" with number {number}: there is {kind} \"{name}\" with number {has}; rename \
                         or renumber that one",
                        wanted.name
                    ));
                }
            }
        }
        accounts
    }
}

/// Why a user that is there already is none to run a process as.
fn unfit(name: &str, number: u32, wanted: User, users: &str) -> Vec<String> {
    let mut why = Vec::new();
    if wanted.number.is_none() && !SYSTEM.contains(&number) {
        why.push(format!(
            "use user \"{name}\": number {number}, expected one of the system's ({} to {}); rename or renumber it",
            SYSTEM.start(),
            SYSTEM.end()
        ));
    }
    let line = users.lines().find(|line| line.split(':').next() == Some(name));
    let shell = line.and_then(|line| line.split(':').nth(6)).unwrap_or_default();
    if !NO_SHELLS.iter().any(|end| shell.ends_with(end)) {
        why.push(format!(
            "use user \"{name}\": it can log in (shell \"{}\"); usermod --shell /usr/sbin/nologin {name}",
            printable(shell)
        ));
    }
    why
}

/// Whether a group of that name is in the tree's list.
pub(super) fn has_group(tree: &Tree, group: &str) -> Result<bool, TreeError> {
    let groups = tree.text(Path::new(GROUP), LIST_MAX)?.unwrap_or_default();
    Ok(find(&groups, |name, _| name == group).is_some())
}

/// Whether a user of that name is in the tree's list.
pub(super) fn has_user(tree: &Tree, user: &str) -> Result<bool, TreeError> {
    let users = tree.text(Path::new(PASSWD), LIST_MAX)?.unwrap_or_default();
    Ok(find(&users, |name, _| name == user).is_some())
}

/// The lines `u NAME NUMBER ...`.
fn wanted() -> impl Iterator<Item = User> {
    SYSUSERS.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let kind = words.next().filter(|kind| *kind == "u");
        let (name, number) = (kind.and(words.next())?, words.next()?);
        Some(User { name, number: number.parse().ok() })
    })
}

/// In lines of `name:x:number:...`. Lines of another form are other programs' business.
fn find(list: &str, is_it: impl Fn(&str, u32) -> bool) -> Option<(&str, u32)> {
    list.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?.parse().ok()?);
        is_it(name, number).then_some((name, number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_are_those_of_the_file() {
        let all: Vec<User> = wanted().collect();
        assert!(all.contains(&User { name: "portcullis", number: None }), "{all:?}");
        assert!(all.contains(&User { name: "portcullis-shared", number: Some(61_001) }), "{all:?}");
    }

    #[test]
    fn those_who_are_there_are_not_missing_and_others_are_in_the_way() {
        let ours = "root:x:0:0::/root:/bin/sh\nportcullis-shared:x:61001:61001::/:/usr/sbin/nologin\n";
        let others = [
            "portcullis",
            "portcullis-frontend",
            "portcullis-registry",
            "portcullis-exporter",
            "portcullis-gateway",
            "portcullis-fetcher",
        ];
        let accounts = Accounts::compare(ours, "root:x:0:\nportcullis-shared:x:61001:\n");
        assert_eq!(accounts.users, others);
        assert_eq!(accounts.groups, others);
        assert!(accounts.taken.is_empty(), "{accounts:?}");

        let accounts = Accounts::compare("eve:x:61000:61000::/:/bin/sh\n", "portcullis-shared:x:7:\n");
        assert_eq!((accounts.users.len(), accounts.groups.len()), (7, 6));
        let [user, group] = accounts.taken.as_slice() else { panic!("{accounts:?}") };
        assert!(
            user.starts_with("make user \"portcullis-frontend\" with number 61000: there is user \"eve\"")
        );
        assert!(group.starts_with("make group \"portcullis-shared\" with number 61001: there is group"));
        assert_eq!(Accounts::compare("", "").taken, Vec::<String>::new());
    }

    #[test]
    fn a_user_that_is_there_is_one_of_the_systems_and_cannot_log_in() {
        let taken = |line: &str| Accounts::compare(line, "portcullis:x:998:\n").taken;
        assert_eq!(taken("portcullis:x:998:998::/:/usr/sbin/nologin\n"), Vec::<String>::new());
        assert_eq!(taken("portcullis:x:998:998::/:/bin/false\n"), Vec::<String>::new());
        for (line, part) in [
            ("portcullis:x:0:0::/:/usr/sbin/nologin\n", "number 0, expected one of the system's (1 to 999)"),
            ("portcullis:x:1000:1000::/:/usr/sbin/nologin\n", "number 1000, expected"),
            ("portcullis:x:998:998::/:/bin/bash\n", "it can log in (shell \"/bin/bash\"); usermod"),
            // No shell is /bin/sh.
            ("portcullis:x:998:998::/:\n", "it can log in (shell \"\")"),
            ("portcullis-shared:x:61001:61001::/:/bin/sh\n", "use user \"portcullis-shared\": it can log in"),
        ] {
            let taken = taken(line);
            assert!(taken.iter().any(|said| said.contains(part)), "{line}: {taken:?}");
        }
    }
}
