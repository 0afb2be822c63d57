//! Who is in the service's control group: also those who were made by its processes and then left to init, which no
//! parent shows.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::view;

/// Where the hierarchy is mounted: by itself, or beside those of the first version.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Everybody at or below the supervisor's control group, or why that cannot be said. `None` where the group is not the
/// service's alone, so that others may be in it.
pub(super) fn members(supervisor: i32, parent: i32) -> Option<Result<BTreeSet<i32>, String>> {
    let own = view::text(supervisor, "cgroup").ok()?;
    let parents = view::text(parent, "cgroup").ok()?;
    let group = alone(&own, &parents)?;
    let members = MOUNTS.iter().find_map(|mount| {
        let mut members = BTreeSet::new();
        walk(Path::new(&format!("{mount}{group}")), &mut members).ok()?;
        members.contains(&supervisor).then_some(members)
    });
    Some(members.ok_or_else(|| {
        format!("control group {}: its processes are not shown here", view::shown(group.as_ref()))
    }))
}

/// The group made for the service: neither the machine's nor a session's, and who started the supervisor is not in it.
fn alone(own: &str, parents: &str) -> Option<String> {
    let group = |text: &str| text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned);
    let (own, parents) = (group(own)?, group(parents)?);
    // Where it was divided, this is the part that the supervisor keeps for itself.
    let own = own.strip_suffix("/supervisor").unwrap_or(&own);
    let is_alone = own.len() > 1
        && own.starts_with('/')
        && !own.ends_with(".scope")
        && !Path::new(own).components().any(|part| part.as_os_str() == "..")
        && !Path::new(&parents).starts_with(own);
    is_alone.then(|| own.to_owned())
}

fn walk(group: &Path, members: &mut BTreeSet<i32>) -> io::Result<()> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    members.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), members)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_the_services_if_who_started_it_is_outside_and_it_is_no_session() {
        let alone =
            |own: &str, parents: &str| alone(&format!("4:memory:/x\n0::{own}\n"), &format!("0::{parents}\n"));
        let service = "/system.slice/portcullis.service";
        assert_eq!(alone(service, "/init.scope").as_deref(), Some(service));
        assert_eq!(alone(&format!("{service}/supervisor"), "/init.scope").as_deref(), Some(service));
        assert_eq!(alone(service, "/system.slice/portcullis.service2").as_deref(), Some(service));
        for (own, parents) in [
            ("/", "/"),
            ("/supervisor", "/"),
            (service, service),
            (service, "/system.slice/portcullis.service/sub"),
            ("/user.slice/user-0.slice/session-1.scope", "/init.scope"),
            ("/../portcullis.service", "/"),
            ("", "/"),
        ] {
            assert_eq!(alone(own, parents), None, "{own} {parents}");
        }
    }

    #[test]
    fn everybody_below_counts() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir(top.path().join("class-a")).unwrap();
        fs::write(top.path().join("cgroup.procs"), "7\n8\n").unwrap();
        fs::write(top.path().join("class-a/cgroup.procs"), "9\n").unwrap();
        let mut members = BTreeSet::new();
        walk(top.path(), &mut members).unwrap();
        assert_eq!(members, BTreeSet::from([7, 8, 9]));
        // A part that cannot be read is not taken for empty.
        fs::remove_file(top.path().join("class-a/cgroup.procs")).unwrap();
        assert!(walk(top.path(), &mut members).is_err());
    }
}
