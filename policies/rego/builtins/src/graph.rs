//! Paths through a graph, and whether one value is part of another.

use std::collections::{BTreeMap, BTreeSet};

use crate::arguments::{Arguments, members};
use crate::value::Value;
use crate::{Answer, Builtin, Failure, Host, pure};

pub(crate) const FUNCTIONS: &[Builtin] =
    &[pure("graph.reachable_paths", 2, reachable_paths), pure("object.subset", 2, subset)];

/// Nodes on one path. What is longer is no hierarchy, and each node is a step of a recursion.
const PATH_MAX: usize = 1_000;

struct Walk<'a> {
    graph: &'a BTreeMap<Value, Value>,
    reached: BTreeSet<&'a Value>,
    paths: BTreeSet<Value>,
}

impl<'a> Walk<'a> {
    /// Goes on from `node`, which `path` leads to. A path ends where there is nothing new.
    fn follow(&mut self, node: &'a Value, path: &mut Vec<Value>) -> Result<(), Failure> {
        if path.len() >= PATH_MAX {
            return Err(Failure::new("path too long"));
        }
        let Some(edges) = self.graph.get(node) else {
            self.paths.insert(Value::Array(path.clone()));
            return Ok(());
        };
        path.push(node.clone());
        let neighbours = members(edges).unwrap_or_default();
        if neighbours.is_empty() {
            self.paths.insert(Value::Array(path.clone()));
        }
        for neighbour in neighbours {
            if self.reached.contains(neighbour) {
                self.paths.insert(Value::Array(path.clone()));
            } else {
                self.reached.insert(node);
                self.follow(neighbour, path)?;
            }
        }
        path.pop();
        Ok(())
    }
}

fn reachable_paths(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    let graph = arguments.object(0)?;
    let mut paths = BTreeSet::new();
    for root in arguments.members(1)? {
        let Some(edges) = graph.get(root) else { continue };
        let neighbours = members(edges).unwrap_or_default();
        if neighbours.is_empty() {
            paths.insert(Value::Array(vec![root.clone()]));
        }
        for neighbour in neighbours {
            let mut walk = Walk { graph, reached: BTreeSet::from([root]), paths: BTreeSet::new() };
            walk.follow(neighbour, &mut vec![root.clone()])?;
            paths.append(&mut walk.paths);
        }
    }
    Ok(Value::Set(paths))
}

fn subset(_: &dyn Host, arguments: Arguments<'_>) -> Answer {
    contains(arguments.get(0)?, arguments.get(1)?)
        .map(Value::Bool)
        .ok_or_else(|| Failure::new("both arguments object.subset must be of the same type or array and set"))
}

/// Whether `whole` has all of `part`. None for kinds that cannot be compared.
fn contains(whole: &Value, part: &Value) -> Option<bool> {
    Some(match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => part
            .iter()
            .all(|(key, part)| whole.get(key).is_some_and(|whole| whole == part || nested(whole, part))),
        (Value::Set(whole), Value::Set(part)) => part.is_subset(whole),
        (Value::Array(whole), Value::Array(part)) => {
            part.is_empty() || whole.windows(part.len()).any(|window| window == part.as_slice())
        }
        (Value::Array(whole), Value::Set(part)) => part.iter().all(|part| whole.contains(part)),
        _ => return None,
    })
}

fn nested(whole: &Value, part: &Value) -> bool {
    let same = matches!(
        (whole, part),
        (Value::Object(_), Value::Object(_))
            | (Value::Set(_), Value::Set(_))
            | (Value::Array(_), Value::Array(_))
    );
    same && contains(whole, part).unwrap_or(false)
}
