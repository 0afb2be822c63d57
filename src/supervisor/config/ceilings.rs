//! What policies may have at most, in a class and in a tenant: the same keys in both.

use crate::artifact::Ceiling;
use crate::document::Section;
use crate::document::values::{number, size};

/// What a class gives that says nothing.
pub(super) const CLASS: Ceiling = Ceiling {
    memory: 4 << 20,
    table_elements: 10_000,
    output: 4 << 20,
    stack: 256 << 10,
    host_calls: 10_000,
    fuel: None,
};
/// What no class can exceed; a tenant that says nothing has its class's.
pub(super) const MOST: Ceiling = Ceiling {
    memory: 1 << 30,
    table_elements: 10_000,
    output: 4 << 20,
    stack: 1 << 20,
    host_calls: 1_000_000,
    fuel: None,
};

/// A tenant that may have less than its class says so; who says more gets the class's.
pub(super) fn read(section: &mut Section<'_>, default: &Ceiling) -> Option<Ceiling> {
    let memory = section.defaulted("memory", default.memory, size(64 << 10..=1 << 30));
    let table_elements =
        section.defaulted("table_elements", default.table_elements, number(0..=MOST.table_elements));
    let output = section.defaulted("output", default.output, size(1 << 10..=MOST.output));
    let stack = section.defaulted("stack", default.stack, size(64 << 10..=MOST.stack));
    let host_calls = section.defaulted("host_calls", default.host_calls, number(0..=MOST.host_calls));
    let fuel = section.optional("fuel", number(1..=u64::MAX >> 1));
    Some(Ceiling {
        memory: memory?.value,
        table_elements: table_elements?.value,
        output: output?.value,
        stack: stack?.value,
        host_calls: host_calls?.value,
        fuel: fuel.map(|found| found.value),
    })
}
